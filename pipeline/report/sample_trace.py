"""Write samples-rank{r}.jsonl: the sample ids of each rank at each step, and the frames of clips."""

from pathlib import Path

from pipeline.cluster.world import World
from pipeline.data.request import Request
from pipeline.files import AppendedFile, Writing, json_lines, keep_lines


class SampleTrace:
    """Writes the samples of one rank, one line per step.

    Args:
        file: the file to append to.
    """

    def __init__(self, file: AppendedFile) -> None:
        self._file = file
        self._requests: list[Request] = []

    def add(self, request: Request) -> None:
        """Add the samples of a micro-batch."""
        self._requests.append(request)

    def write(self, step: int) -> None:
        """Write the samples added since the previous step."""
        ids = [sample for request in self._requests for sample in request.ids.tolist()]
        frames = [clip for request in self._requests if request.frames is not None for clip in request.frames.tolist()]
        self._file.append(json_lines([{"step": step, "ids": ids, **({"frames": frames} if frames else {})}]))
        self.drop()

    def drop(self) -> None:
        """Drop the samples added since the previous step."""
        self._requests = []


def open_trace(folder: Path, world: World, first_step: int) -> SampleTrace:
    """Return this rank's trace in `run.dir`, truncated to the steps before `first_step`.

    All ranks call this together.
    """
    writing = Writing()
    if world.rank == 0:  # also for ranks that this attempt no longer has
        for path in folder.glob("samples-rank*.jsonl"):
            with writing(path):
                keep_lines(path, first_step - 1)
    world.barrier()
    return SampleTrace(AppendedFile(folder / f"samples-rank{world.rank}.jsonl", writing))
