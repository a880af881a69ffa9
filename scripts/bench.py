"""Measure the parts of the pipeline, side by side with what would be used instead.

    python scripts/bench.py loader SHARDS [--threads 2] [--size 224]    decoded, cropped images/s
    python scripts/bench.py hog [--size 224]                            HOG targets, images/s
    python scripts/bench.py masks                                       block masks/s
    python scripts/bench.py plan                                        sample order of 10^10 samples

Each prints the median over several rounds in which the contestants take turns, so that a machine whose speed drifts
slows all of them. Results depend on the machine: docs/benchmarks.md has ours.
"""

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from pipeline.config import Data
from pipeline.data.loader import Loader, training_requests
from pipeline.data.plan import Plan
from pipeline.targets.hog import hog_target
from pipeline.targets.masking import block_masks
from shards.manifest import Manifest

ROUNDS = 5
LOADED = 40  # batches of 32 images a round


def loader(arguments: argparse.Namespace) -> dict[str, float]:
    """Crops a second: our loader, and webdataset + Pillow + torchvision in a DataLoader of as many workers."""
    import webdataset as wds
    from torch.utils.data import DataLoader
    from torchvision.transforms import v2

    manifest, batch, size = Manifest.load(arguments.shards), 32, arguments.size
    data = Data(shards=arguments.shards, image_size=size, decode_threads=arguments.threads, lanes=1)
    plan = Plan(manifest.counts, lanes=1, block=len(manifest))
    own = Loader(manifest, data, batch, torch.device("cpu"))
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, (0.5, 1.0), antialias=True, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
        ]
    )
    shards = [str(manifest.root / name) for name in manifest.shard_names]
    peer = wds.WebDataset(shards, shardshuffle=False, nodesplitter=None, workersplitter=None).repeat()
    peer = peer.shuffle(100).decode("pilrgb").to_tuple("jpg;png").map_tuple(transform).batched(batch)

    def ours() -> Iterator[Any]:
        requests = training_requests(
            plan, manifest, data, first_step=0, batch_size=batch, micro_batch=batch, rank=0, world_size=1
        )
        return own.batches(islice(requests, LOADED + 1))

    def theirs() -> Iterator[Any]:
        return iter(DataLoader(peer, batch_size=None, num_workers=arguments.threads, prefetch_factor=2))

    rates: dict[str, list[float]] = {"this loader": [], "webdataset + Pillow + torchvision": []}
    for _ in range(ROUNDS):
        for name, start in zip(rates, (ours, theirs), strict=True):  # each alone, from its own start
            batches = start()
            next(batches)
            begin = time.perf_counter()
            images = sum(batch for _ in islice(batches, LOADED))
            rates[name].append(images / (time.perf_counter() - begin))
            del batches
    return {name: statistics.median(values) for name, values in rates.items()}


def hog(arguments: argparse.Namespace) -> dict[str, float]:
    """Targets a second, for a batch of 32."""
    images = torch.randint(0, 256, (32, arguments.size, arguments.size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    compiled = torch.compile(hog_target, dynamic=False)

    def with_skimage() -> int:
        from skimage.feature import hog as skimage_hog

        for image in images[:8].permute(0, 2, 3, 1).numpy():
            for channel in range(3):
                skimage_hog(image[..., channel], 9, (8, 8), (1, 1), feature_vector=False)
        return 8

    def with_torch(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], int]:
        return lambda: len(function(images))

    return race(
        {"compiled": with_torch(compiled), "eager": with_torch(hog_target), "skimage.feature.hog": with_skimage}
    )


def masks(arguments: argparse.Namespace) -> dict[str, float]:
    """Masks of 14x14 a second, in batches of 32 and 256."""
    keys = torch.randint(0, 2**62, (256,))
    return race({f"batch of {n}": partial(lambda n: len(block_masks(keys[:n])), n) for n in (256, 32)})


def plan(arguments: argparse.Namespace) -> dict[str, float]:
    """Ids a second in batches of 4,096, out of 10^10 samples in 10^6 shards and 4,096 lanes; opening a step apart."""
    begin = time.perf_counter()
    huge = Plan(np.full(10**6, 10**4), seed=1, lanes=4096)
    huge.batch(10**6, 4096)
    print(f"opening step 1,000,000: {time.perf_counter() - begin:.2f} s")
    return race({"batch of 4,096 ids": lambda: len(huge.batch(random.randrange(10**6), 4096))})


def race(contestants: dict[str, Callable[[], int]]) -> dict[str, float]:
    """Items a second of each, the median over rounds in which they take turns; each call returns its items."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()  # warm up: compile, fill queues
    for _ in range(ROUNDS):
        for name, run in contestants.items():
            begin = time.perf_counter()
            items = run()
            rates[name].append(items / (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in rates.items()}


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["loader", "hog", "masks", "plan"])
    parser.add_argument("shards", type=Path, nargs="?", help="for loader: a folder that maskfeat-shards wrote")
    parser.add_argument("--threads", type=int, default=2, help="decoding threads, and workers of the peer")
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    arguments = parser.parse_args()
    if arguments.what == "loader" and arguments.shards is None:
        parser.error("loader needs SHARDS")
    results = {"loader": loader, "hog": hog, "masks": masks, "plan": plan}[arguments.what](arguments)
    table = Table(arguments.what, "a second", "against the first")
    first = next(iter(results.values()))
    for name, rate in results.items():
        table.add_row(name, f"{rate:,.0f}", f"{rate / first:.2f}")
    Console().print(table)
    print(f"{platform.machine()}, {torch.get_num_threads()} torch threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
