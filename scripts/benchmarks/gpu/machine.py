"""Item 0: describe the GPU, and check the software that the script needs beyond the project's own."""

import ctypes
import ctypes.util
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.results import Bench, Check, Failure, LeftOut, Result
from pipeline.peaks import peak


@dataclass(frozen=True)
class Need:
    """Software that `scripts/bench.py gpu` uses.

    Attributes:
        name, use, remedy: texts; the last says how to install it.
        found: returns whether it is installed.
        of_driver: whether it comes with the driver of a GPU.
    """

    name: str
    use: str
    remedy: str
    found: Callable[[], bool]
    of_driver: bool = False

    def line(self) -> str:
        """Say whether it is installed, and if not, how to install it."""
        return f"found: {self.name}" if self.found() else f"missing: {self.name}, {self.use}: {self.remedy}"


def _module(name: str) -> Callable[[], bool]:
    return lambda: importlib.util.find_spec(name) is not None


def _nvjpeg() -> bool:
    spec = importlib.util.find_spec("nvidia")
    folders = (spec.submodule_search_locations if spec else None) or []
    packaged = (file for folder in folders for file in Path(folder).glob("*/lib/libnvjpeg.so*"))
    return next(packaged, None) is not None or ctypes.util.find_library("nvjpeg") is not None


def _nvcuvid() -> bool:
    try:
        ctypes.CDLL("libnvcuvid.so.1")
    except OSError:
        return False
    return True


NEEDS = (
    Need(
        "a C compiler",
        "with which Triton builds its launchers",
        "install gcc, or name one in CC",
        lambda: any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))),
    ),
    Need(
        "Python.h",
        "which these include",
        "install python3-dev of this Python's version",
        lambda: Path(sysconfig.get_path("include"), "Python.h").exists(),
    ),
    Need("libnvjpeg", "without which the CPU decodes in silence", "pip install nvidia-nvjpeg", _nvjpeg),
    Need("pynvml", "which tells the use of the JPEG hardware", "pip install nvidia-ml-py", _module("pynvml")),
    Need("PyAV", "which makes videos and decodes them on the CPU", "pip install av", _module("av")),
    Need(
        "libnvcuvid",
        "by which a GPU decodes videos",
        "start the container with NVIDIA_DRIVER_CAPABILITIES=compute,utility,video",
        _nvcuvid,
        of_driver=True,
    ),
    Need("webdataset", "a loader to compare with", "pip install webdataset", _module("webdataset")),
    Need("torchvision", "its transforms", "pip install torchvision, of torch's version", _module("torchvision")),
)


def machine_facts(bench: Bench) -> Iterator[Result]:
    """Check the needs, and describe the GPU."""
    for need in NEEDS:
        name = f"needed: {need.name}"
        if bench.scale.dry and need.of_driver:
            yield LeftOut(name, "there is no GPU")
            continue
        yield Check(name, True) if need.found() else Failure(name, need.line())
    if bench.scale.dry:
        yield LeftOut("the GPU's name, memory and engines", "there is no GPU")
        return
    properties = torch.cuda.get_device_properties(0)
    card = peak()
    facts = {
        "memory GiB": properties.total_memory / 2**30,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "peak TFLOP/s in bf16": card.tflops if card else "not known: no MFU is given",
    }
    yield Check(f"GPU: {properties.name}", properties.major >= 8, facts)  # bf16 needs 8.0
