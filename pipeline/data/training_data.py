"""The interface between training and its data. `exact.ExactData` and `stream.StreamData` implement it."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from pipeline.data.batch import Batch
from shards.manifest import Manifest


class TrainingData(Protocol):
    """One rank's training batches.

    Attributes:
        identity: what decides which samples there are, and their order, besides the settings, by name; JSON.
        samples: of an epoch, over all ranks.
        notes: for the operator.
    """

    identity: dict[str, Any]
    samples: int
    notes: list[str]

    def batches(self, first_step: int, micro_batches: int) -> Iterator[Batch]:
        """Return so many of this rank's micro-batches, from the first of a step on.

        Raises:
            DataError: too many samples are bad, or the storage is out of reach.
        """
        ...

    def counters(self) -> dict[str, float]:
        """Return what reading has done so far in this process, by name. All ranks have the same names."""
        ...

    def names(self, samples: Sequence[int]) -> list[dict[str, str]]:
        """Return where samples are found, of each by what that is: key, path or shard, as far as it is known."""
        ...

    def close(self) -> None:
        """Leave what is shared with other processes."""
        ...


class ListedData(TrainingData, Protocol):
    """Training data with a manifest, which also knows the labels of the samples."""

    manifest: Manifest
