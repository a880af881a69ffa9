"""The machine that a run starts on: its GPUs and cores, and the number of processes for a batch."""

import ctypes
import os
from collections.abc import Mapping
from math import prod

MOST_PROCESSES = 8  # on CPUs: each takes about a gigabyte of memory, for any model


def gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none where there is no driver."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(count.value))
    return [name.strip() for name in names][: count.value]


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_processes(cores: int, batch: int, unit: int) -> int:
    """Return the number of processes that keep most of the cores busy, with equally many threads each.

    Args:
        cores: cores of the machine.
        batch: inputs per step; 0 without a batch.
        unit: inputs that stay on one process, see `TrainingRecipe.views`.
    """
    fitting = [count for count in range(1, min(cores, MOST_PROCESSES) + 1) if shares_out(batch, count, unit)]
    return max(fitting, key=lambda count: (cores // count * count, count), default=1)


def gpu_processes(gpus: int, batch: int, unit: int) -> int:
    """Return the largest number of GPUs that divides a batch. See `cpu_processes`."""
    return next((count for count in range(gpus, 1, -1) if shares_out(batch, count, unit)), 1)


def shares_out(batch: int, processes: int, unit: int) -> bool:
    """Return whether the processes divide a batch evenly."""
    return batch % (processes * unit) == 0


def batch_of(settings: Mapping[str, Mapping[str, object]]) -> tuple[int, int]:
    """Return the inputs per step, and how many of them stay on one process; (1, 1) where the settings are wrong."""
    try:
        batch = int(str(settings["optim"]["batch_size"]))
        unit = prod(int(str(settings.get(section, {}).get("repeats", 1))) for section in ("data", "mask"))
    except (KeyError, ValueError):
        return 1, 1
    return (batch, unit) if batch > 0 and unit > 0 else (1, 1)
