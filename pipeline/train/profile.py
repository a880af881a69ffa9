"""Where the time of a step goes: a trace to open in Perfetto (ui.perfetto.dev), and a table that fits on a screen."""

from pathlib import Path

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

from pipeline.train.phases import NAMES
from pipeline.train.writing import Writing

SETTLING = 3  # steps before the first that is profiled: compiling, filling queues


class Profile:
    """Profiles some steps of one rank.

    Args:
        folder: gets rank{r}-steps-{first}-{last}.json.gz.
        rank: this one.
        first, last: steps, both included.
        device: where the model is.
    """

    def __init__(self, folder: Path, rank: int, first: int, last: int, device: torch.device) -> None:
        self._path = folder / f"rank{rank}-steps-{first}-{last}.json.gz"
        self._first, self._last = first, last
        self._gpu = device.type == "cuda"
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self._gpu
        threads = _ExperimentalConfig(profile_all_threads=True)  # images are decoded in another one
        self._profile = profile(activities=activities, experimental_config=threads)

    def before(self, step: int) -> None:
        """To be called before each step."""
        if step == self._first:
            self._profile.start()

    def after(self, step: int) -> str | None:
        """To be called after each step; the table, after the last."""
        if step != self._last:
            return None
        if self._gpu:
            torch.cuda.synchronize()
        self._profile.stop()
        with Writing()(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(self._path))
        return self._table()

    def _table(self) -> str:
        """Milliseconds a step, on the device where there is one."""
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
