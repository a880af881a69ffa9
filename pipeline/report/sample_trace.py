"""samples-rank{r}.jsonl: the ids of the samples that each rank took at each step, with `run.trace_samples`."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.cluster.world import World
from pipeline.files import AppendedFile, Writing, json_lines, keep_lines


class SampleTrace:
    """Writes the samples of one rank, a line a step.

    Args:
        file: that the lines are appended to.
    """

    def __init__(self, file: AppendedFile) -> None:
        self._file = file
        self._ids: list[int] = []

    def add(self, ids: NDArray[np.int64]) -> None:
        """Note the samples of a micro-batch."""
        self._ids += ids.tolist()

    def write(self, step: int) -> None:
        """Write down those noted since the step before."""
        self._file.append(json_lines([{"step": step, "ids": self._ids}]))
        self._ids = []

    def drop(self) -> None:
        """Forget those noted since the step before."""
        self._ids = []


def open_trace(folder: Path, world: World, first_step: int) -> SampleTrace:
    """Return this rank's trace in `run.dir`, after what it has of the steps before `first_step`.

    All ranks call this together.
    """
    writing = Writing()
    if world.rank == 0:  # for ranks that this life no longer has, too
        for path in folder.glob("samples-rank*.jsonl"):
            with writing(path):
                keep_lines(path, first_step - 1)
    world.barrier()
    return SampleTrace(AppendedFile(folder / f"samples-rank{world.rank}.jsonl", writing))
