"""Profile steps: a trace for Perfetto (ui.perfetto.dev), and a table that fits on a screen."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

from pipeline.cluster.phases import NAMES
from pipeline.cluster.world import World
from pipeline.files import Writing

SETTLING = 3  # steps before the first profiled one: compiling, filling queues


class Profile:
    """Profiles some steps of one rank.

    Args:
        folder: folder for rank{r}-steps-{first}-{last}.json.gz.
        world: the ranks.
        first_step, end: the steps of this attempt, from `first_step` to before `end`.
        steps: number of profiled steps, after the first `SETTLING`; 0: none.
        say: prints the table.
    """

    def __init__(
        self, folder: Path, world: World, first_step: int, end: int, steps: int, say: Callable[[str], None]
    ) -> None:
        self._first = first_step + SETTLING
        self._last = min(self._first + steps, end) - 1
        self._path = folder / f"rank{world.rank}-steps-{self._first}-{self._last}.json.gz"
        self._gpu, self._say = world.gpu is not None, say
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self._gpu
        threads = _ExperimentalConfig(profile_all_threads=True)  # images are decoded in another thread
        self._profile = profile(activities=activities, experimental_config=threads)

    @contextmanager
    def of(self, step: int) -> Iterator[None]:
        """Profile the step in the block, if it is one of the profiled steps."""
        profiled = self._first <= step <= self._last
        if profiled and step == self._first:
            self._profile.start()
        yield
        if profiled and step == self._last:
            self._stop()

    def _stop(self) -> None:
        if self._gpu:
            torch.cuda.synchronize()
        self._profile.stop()
        with Writing()(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(self._path))
        for line in self._table().splitlines():
            self._say(line)

    def _table(self) -> str:
        """Return the milliseconds per step of each phase, on the device where there is one, as lines."""
        averages = self._profile.key_averages()
        steps = self._last - self._first + 1
        rows: dict[str, float] = dict.fromkeys((*NAMES, "decode", "communication"), 0.0)
        for event in averages:
            on_device = self._gpu and event.key not in ("data wait", "agreement", "logging", "decode")
            time = (event.device_time_total if on_device else event.cpu_time_total) / 1000 / steps
            if event.key in rows:
                rows[event.key] += time
            elif event.key.startswith(("gloo:", "nccl:")):
                rows["communication"] += time
        lines = [f"{name:14} {time:9.2f} ms" for name, time in rows.items() if time]
        where = "the GPU" if self._gpu else "the CPU"
        return "\n".join(
            [
                f"a step of {self._first} to {self._last}, on {where}; decode runs beside the rest,",
                *lines,
                str(self._path),
            ]
        )
