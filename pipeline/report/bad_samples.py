"""Count bad samples over all ranks, write them to quarantine.jsonl, and detect when there are too many."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from pipeline.cluster.world import World
from pipeline.data.quarantine import BadSample, too_many
from pipeline.data.settings import Data
from pipeline.files import Writing, json_lines, replace
from pipeline.report.report import Report


class BadSamples:
    """Keeps the bad samples of this rank since the last log, and counts those of all ranks in this attempt.

    Args:
        folder: `run.dir`.
        data: the limits of bad samples.
        world: the ranks.
        names: returns the locations of samples, see `TrainingData.names`.
    """

    def __init__(
        self, folder: Path, data: Data, world: World, names: Callable[[Sequence[int]], list[dict[str, str]]]
    ) -> None:
        self._folder, self._data, self._world, self._names = folder, data, world, names
        self._met: list[BadSample] = []
        self._bad = self._seen = 0

    def add(self, bad: list[BadSample]) -> None:
        """Keep bad samples of this rank until the next log."""
        self._met += bad

    def __len__(self) -> int:
        return len(self._met)

    def log(self, bad: int, seen: int, report: Report) -> str | None:
        """Write the bad samples of all ranks since the last log. All ranks call this together.

        Args:
            bad: the number of bad samples on all ranks since the last log.
            seen: samples since then, good and bad.

        Returns:
            A message for the operator if there are too many, else None.
        """
        self._bad += bad
        self._seen += seen
        if bad:
            met = sorted(chain(*self._world.gather(self._met)), key=lambda sample: (sample.step, sample.id))
            if self._world.rank == 0:
                names = self._names([sample.id for sample in met])
                report.quarantine([asdict(sample) | named for sample, named in zip(met, names, strict=True)])
            self._met.clear()
        if not too_many(self._bad, self._seen, self._data.bad_in_a_row, self._data.bad_share):
            return None
        return (
            f"{self._bad:,} of {self._seen:,} samples are bad, see {self._folder}/quarantine.jsonl: "
            "repair the data set, or raise data.bad_share"
        )

    def write_unlogged(self, last: list[BadSample]) -> None:
        """Write unlogged samples, and `last`, to a file of this rank, since other ranks may be gone."""
        path = self._folder / f"quarantine-rank{self._world.rank}.jsonl"
        with Writing()(path):
            replace(path, json_lines(asdict(sample) for sample in [*self._met, *last]))
