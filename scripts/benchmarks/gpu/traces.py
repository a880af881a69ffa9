"""Trace a few steps, to find waits of the host and idle time of the GPU."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.hardware import synchronise

WAITS = {"cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize"}
_STEP = "a traced step"
_ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}


class Trace:
    """Events of a trace in Chrome's format, times in microseconds."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self._events = [event for event in events if event.get("ph") == "X"]

    def within_steps(self) -> list[str]:
        """Return the names of all events within the steps, in the thread that took them."""
        steps = [event for event in self._events if event["name"] == _STEP and event["cat"] == "user_annotation"]
        return [
            event["name"]
            for event in self._events
            if any(
                event["tid"] == step["tid"] and step["ts"] <= event["ts"] <= step["ts"] + step["dur"] for step in steps
            )
        ]

    def waits(self) -> list[str]:
        """Return those that are calls of the CUDA runtime that wait for the device."""
        return [name for name in self.within_steps() if name in WAITS]

    def idle(self) -> float | None:
        """Return the share of time without work, from the GPU's first work to its last; None without a GPU."""
        spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in self._on_device())
        if not spans:
            return None
        begin = reached = float(spans[0][0])
        busy = 0.0
        for start, end in spans:
            busy += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        return 1 - busy / (reached - begin)

    def kernels(self) -> Counter[str]:
        """Count the runs of each kernel, in all threads and streams."""
        return Counter(event["name"] for event in self._on_device() if event["cat"] == "kernel")

    def _on_device(self) -> list[dict[str, Any]]:
        return [event for event in self._events if event.get("cat") in _ON_DEVICE]


def traced(step: Callable[[], object], times: int, device: torch.device) -> Trace:
    """Trace `times` steps, to their end on the device."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiler:
        for _ in range(times):
            with record_function(_STEP):
                step()
        synchronise(device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        return Trace(json.loads(file.read_text())["traceEvents"])
