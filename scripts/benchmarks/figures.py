"""Figures of benchmarks: a number, beside those of peers in the same run and the limits of the hardware."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import torch
from rich.console import Console
from rich.table import Table

from shards.secrets import masked

PACKAGES = (
    "torch",
    "triton",
    "deepspeed",
    "timm",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
    "nvidia-nvimgcodec-cu13",
    "nvidia-nvimgcodec-cu12",
    "nvidia-nvjpeg",
    "webdataset",
    "torchvision",
    "numpy",
)


@dataclass(frozen=True)
class Figure:
    """One number.

    Attributes:
        name: what was measured.
        unit: of `achieved`, `peers` and `limits`.
        achieved: the number of this project.
        peers: numbers of others, or of this project in another way, in the same run.
        limits: the limits of the hardware.
        settings: settings of the recipe that the number depends on, by key.
    """

    name: str
    unit: str
    achieved: float
    peers: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the figure as in the files of --json: each peer and limit with our ratio to it."""
        others = {
            kind: {name: {"value": value, "ratio": self.achieved / value} for name, value in values.items()}
            for kind, values in (("peers", self.peers), ("limits", self.limits))
        }
        return {"name": self.name, "unit": self.unit, "achieved": self.achieved} | others | {"settings": self.settings}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Parse the result of `to_json`."""
        peers, limits = ({name: it["value"] for name, it in content[kind].items()} for kind in ("peers", "limits"))
        return cls(content["name"], content["unit"], content["achieved"], peers, limits, content["settings"])


def publish(figures: list[Figure], file: Path | None) -> None:
    """Print figures with their machine, and write both to a file if one is given."""
    print_figures(figures)
    facts = machine()
    print(", ".join([facts["device"], f"{facts['threads']} torch threads", f"torch {facts['versions']['torch']}"]))
    if file:
        write(file, {"machine": facts, "figures": [figure.to_json() for figure in figures]})


def print_figures(figures: list[Figure]) -> None:
    """Print a table: every number, and below it those that it is compared with."""
    table = Table("", "achieved, others", "unit", "ratio to it", box=None)
    for figure in figures:
        table.add_row(f"[bold]{figure.name}", f"[bold]{figure.achieved:,.4g}", figure.unit, "")
        for kind, others in (("peer", figure.peers), ("limit", figure.limits)):
            for name, value in others.items():
                table.add_row(f"  {kind}: {name}", f"{value:,.4g}", figure.unit, f"{figure.achieved / value:.3g}")
    Console(highlight=False, width=140).print(table)


def write(file: Path, content: dict[str, Any]) -> None:
    """Write JSON atomically, with the command that is running."""
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({"command": shlex.join(map(masked, sys.argv))} | content, indent=1) + "\n")
    partial.rename(file)


def machine() -> dict[str, Any]:
    """Return device, driver, processor and versions."""
    gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if gpu else f"no GPU, {_processor()}",
        "gpus": torch.cuda.device_count(),
        "driver": _driver() if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | _versions(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _driver() -> str:
    """Return version, clock and power limit from the driver's own tool."""
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        return f"unknown: {error}"
