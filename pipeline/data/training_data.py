"""The interface between training and its data. `exact.ExactData` and `stream.StreamData` implement it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pipeline.data.batch import Batch
from pipeline.data.request import Medium
from shards.manifest import Manifest


@dataclass(frozen=True)
class Part:
    """Which part of which batches a rank takes.

    Attributes:
        batch_size: inputs of a step, over all ranks.
        micro_batch: inputs of a rank in a batch that is computed at once.
        seed: of the order, the crops and the masks.
        device: where batches go.
        rank, world_size: this rank and how many there are.
        local_rank, local_size: the same among the ranks of this node, which share its cache.
    """

    batch_size: int
    micro_batch: int
    seed: int
    device: torch.device
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1


class TrainingData(Protocol):
    """One rank's training batches.

    Attributes:
        identity: what decides which samples there are, and their order, besides the settings, by name; JSON.
        samples: of an epoch, over all ranks.
        media: of them; every step is of one medium.
        notes: for the operator.
    """

    identity: dict[str, Any]
    samples: int
    media: frozenset[str]
    notes: list[str]

    def batches(self, first_step: int, micro_batches: int, medium: Medium | None = None) -> Iterator[Batch]:
        """Return this many of this rank's micro-batches, from the first of a step on.

        Args:
            first_step: where they begin.
            micro_batches: how many.
            medium: of all of them: steps of another medium are left out; None: none is.

        Raises:
            DataError: too many samples are bad, or the storage is out of reach.
        """
        ...

    def counters(self) -> dict[str, float]:
        """Return what reading has done so far in this process, by name. All ranks have the same names."""
        ...

    def counts(self, samples: Sequence[int]) -> dict[str, int]:
        """Count samples by the data set of a mixture that they are of, by its name; empty where there is no mixture."""
        ...

    def names(self, samples: Sequence[int]) -> list[dict[str, str]]:
        """Return where samples are found, of each by what that is: data set, key, path or shard, as far as known."""
        ...

    def close(self) -> None:
        """Leave what is shared with other processes."""
        ...


class ListedData(TrainingData, Protocol):
    """Training data with a manifest, which also knows the labels of the samples."""

    manifest: Manifest
