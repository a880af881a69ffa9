"""Measure the parts of the pipeline, side by side with what would be used instead.

    python scripts/bench.py build IMAGES [--threads 2]                  images/s, from files to shards
    python scripts/bench.py read SHARDS [--threads 4]                   encoded images/s
    python scripts/bench.py decode SHARDS [--threads 2] [--size 224]    crops/s from memory
    python scripts/bench.py loader SHARDS [--threads 2] [--size 224]    crops/s from shards
    python scripts/bench.py hog [--size 224]                            HOG targets, images/s
    python scripts/bench.py masks                                       block masks/s
    python scripts/bench.py plan                                        sample order of 10^10 samples
    python scripts/bench.py shuffle                                     how random that order is

Each prints the median over several rounds in which the contestants take turns. Results depend on the machine:
docs/benchmarks.md has ours.
"""

import argparse
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.build import build
from benchmarks.data import decode, loader, read
from benchmarks.order import plan
from benchmarks.racing import Rates
from benchmarks.shuffling import shuffle
from benchmarks.targets import hog, masks

ON_DATA: dict[str, Callable[[argparse.Namespace], Rates]] = {
    "build": build,
    "read": read,
    "decode": decode,
    "loader": loader,
}
OTHERS: dict[str, Callable[[argparse.Namespace], Rates | None]] = {
    "hog": hog,
    "masks": masks,
    "plan": plan,
    "shuffle": shuffle,
}


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*ON_DATA, *OTHERS])
    parser.add_argument("folder", type=Path, nargs="?", help="of images for build, of shards for read, decode, loader")
    parser.add_argument("--threads", type=int, default=2, help="ours, and workers of the peer")
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    arguments = parser.parse_args()
    if arguments.what in ON_DATA and arguments.folder is None:
        parser.error(f"{arguments.what} needs a folder")
    rates = (ON_DATA | OTHERS)[arguments.what](arguments)
    if rates:
        table = Table(arguments.what, "a second", "against the first")
        first = next(iter(rates.values()))
        for name, rate in rates.items():
            table.add_row(name, f"{rate:,.0f}", f"{rate / first:.2f}")
        Console().print(table)
    print(f"{platform.machine()}, {torch.get_num_threads()} torch threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
