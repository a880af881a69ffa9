"""Measure how a step's time grows with the model, the image, the batch and the ranks, beside `estimate.py`."""

import json
import os
import socket
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.children import run
from benchmarks.figures import Figure
from benchmarks.racing import race
from benchmarks.step import Loop, resident, step_recipe
from pipeline.build import build_model
from pipeline.cluster.world import World
from pipeline.estimate import PERSISTENT, Cluster, Size, estimate

IMAGES = 16
# Changes of the demo's model (width 192, depth 4, 96 px, fp32)
CHANGES: dict[str, tuple[int, list[str]]] = {
    "as it is": (IMAGES, []),
    "twice as wide": (IMAGES, ["model.options={embed_dim: 384, depth: 4, num_heads: 6}"]),
    "4 times as wide": (IMAGES, ["model.options={embed_dim: 768, depth: 4, num_heads: 12}"]),
    "twice as deep": (IMAGES, ["model.options={embed_dim: 192, depth: 8, num_heads: 3}"]),
    "3 times as deep": (IMAGES, ["model.options={embed_dim: 192, depth: 12, num_heads: 3}"]),
    "192 px": (IMAGES, ["data.image_size=192"]),
    "224 px": (IMAGES, ["data.image_size=224"]),
    "half the images": (IMAGES // 2, []),
    "twice the images": (IMAGES * 2, []),
    "4 times the images": (IMAGES * 4, []),
}
STAGES = (0, 1, 2, 3)
RANKS = (1, 2, 4)
SECONDS = 300  # seconds that one launch may take


def growth(world: World, times: int) -> list[Figure]:
    """Measure milliseconds per step of each change in turns, beside a prediction from the first one's FLOP."""
    loops = {
        name: Loop(step_recipe(["demo", "engine.zero_stage=1", *settings], images, world), world)
        for name, (images, settings) in CHANGES.items()
    }
    steps = {name: partial(_steps, loop, times) for name, loop in loops.items()}
    seconds = {name: 1 / rate for name, rate in race(steps).items()}
    first = loops["as it is"]
    figures = []
    for name, loop in loops.items():
        flops = loop.images * loop.flops
        by_flops = seconds["as it is"] * flops / (first.images * first.flops)
        title = f"{name}: {flops / 1e9:.1f} GFLOP, {loop.images} images"
        figures.append(Figure(title, "ms a step", seconds[name] * 1e3, {"by FLOP from the first": by_flops * 1e3}))
    return figures


def _steps(loop: Loop, times: int) -> int:
    loop.steps(times, resident(loop.recipe, loop.world))
    return times


def growth_of_ranks(world: World, times: int) -> list[Figure]:
    """Measure milliseconds per step and bytes sent for growing numbers of single-threaded ranks and all ZeRO stages.

    Compare with `estimate.py`, given the speed of one rank, and the latency and bandwidth between ranks from the same
    run; ranks beyond the cores share these.
    """
    cores = len(os.sched_getaffinity(0))
    figures = []
    for stage in STAGES:
        settings = ["demo", f"engine.zero_stage={stage}"]
        alone = 0.0
        for ranks in RANKS:
            found = _launched(settings, ranks, times)
            rate = found["images/s"].achieved
            if ranks == 1:
                alone = rate
                figures.append(Figure(f"1 rank, ZeRO {stage}", "ms a step", IMAGES / rate * 1e3))
                continue
            recipe = step_recipe([*settings, f"optim.batch_size={IMAGES * ranks}"], IMAGES, world)
            sizes = [parameter.numel() for parameter in build_model(recipe).parameters()]
            size = Size(sum(sizes), sum(1 for numbers in sizes if numbers <= PERSISTENT))
            bandwidth, latency = found["GB/s sent by a rank"].achieved * 1e9, found["us"].achieved / 1e6
            cluster = Cluster(ranks, ranks, bandwidth, bandwidth, latency)
            modelled = estimate(recipe, size, alone * min(1, cores / ranks), cluster)
            batch = IMAGES * ranks
            figures += [
                Figure(
                    f"{ranks} ranks, ZeRO {stage}",
                    "ms a step",
                    batch / rate * 1e3,
                    {
                        "by estimate.py": batch / modelled.images_per_second * 1e3,
                        "plain PyTorch with DDP": _plain(found, batch),
                    },
                ),
                Figure(
                    f"{ranks} ranks, ZeRO {stage}: sent by a rank",
                    "MB a step",
                    found["bytes"].achieved / 1e6,
                    {"by estimate.py": modelled.sent / 1e6},
                ),
            ]
    return figures


def _plain(found: dict[str, Figure], batch: int) -> float:
    return batch / found["images/s"].peers["plain PyTorch, eager"] * 1e3


def _launched(settings: list[str], ranks: int, times: int) -> dict[str, Figure]:
    """Run `bench.py step` on this many ranks; return the first figure of each unit."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "step.json"
        binaries = Path(sys.executable).parent
        launcher = [binaries / "deepspeed", "--quiet", "--num_gpus", ranks, "--master_port", _free_port()]
        options = ["--images", IMAGES, "--steps", times, "--json", out]
        ours = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
        environment = {name: value for name, value in os.environ.items() if name not in ours}
        environment |= {"OMP_NUM_THREADS": "1", "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
        command = [str(part) for part in (*launcher, sys.argv[0], "step", *settings, *options)]
        if problem := run(command, environment, SECONDS):
            raise RuntimeError(f"{ranks} ranks: {problem}")
        figures = [Figure.from_json(figure) for figure in json.loads(out.read_text())["figures"]]
    return {figure.unit: figure for figure in reversed(figures)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
