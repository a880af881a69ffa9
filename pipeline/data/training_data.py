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
    """A rank's part of the batches.

    Attributes:
        batch_size: inputs per step, over all ranks.
        micro_batch: inputs of a rank that are computed at once.
        seed: that of the order, the crops and the masks.
        device: the device of the batches.
        rank, world_size: this rank and the number of ranks.
        local_rank, local_size: the same within this node, whose ranks share a cache.
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
        identity: the facts, besides the settings, that decide the samples and their order, by name; JSON.
        samples: samples per epoch, over all ranks.
        media: the media of the samples; every step takes one of them.
        notes: lines for the operator.
    """

    identity: dict[str, Any]
    samples: int
    media: frozenset[str]
    notes: list[str]

    def batches(self, first_step: int, micro_batches: int, medium: Medium | None = None) -> Iterator[Batch]:
        """Yield this many of the rank's micro-batches, from the first of a step on.

        Args:
            first_step: the step of the first one.
            micro_batches: how many.
            medium: skip the steps of any other medium; None: skip none.

        Raises:
            DataError: too many samples are bad, or the storage is unreachable.
        """
        ...

    def counters(self) -> dict[str, float]:
        """Return counters of reading so far in this process, by name. All ranks have the same names."""
        ...

    def counts(self, samples: Sequence[int]) -> dict[str, int]:
        """Count samples by the name of their data set in a mixture; empty without a mixture."""
        ...

    def names(self, samples: Sequence[int]) -> list[dict[str, str]]:
        """Return the location of each sample by its parts: data set, key, path or shard, as far as known."""
        ...

    def close(self) -> None:
        """Release what is shared with other processes."""
        ...


class ListedData(TrainingData, Protocol):
    """Training data with a manifest, which also knows the labels of the samples."""

    manifest: Manifest

    def of_medium(self, medium: Medium) -> Manifest:
        """Return the manifest of the samples of this medium."""
        ...
