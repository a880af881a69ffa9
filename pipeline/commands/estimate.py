"""Estimate the needs of a recipe on 8 to 1,024 GPUs: hours, GPU-hours, memory, bytes read and stored.

    maskfeat estimate vit_base_300e --gpus 8 64 --rates FILE [optim.batch_size=4096 ...]

`pipeline/estimate.py` describes the model of a step and its limits.

Examples:

    maskfeat estimate vit_base_300e --images-per-second 2100
    maskfeat estimate vit_large_1600e --gpus 64 128 --rates rates.json optim.batch_size=4096
    maskfeat estimate mvit_small_300e_k400 --clips-per-second 300 --video-bytes 800e3
"""

import json
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.config import NO_DATA, Recipe, load_recipe
from pipeline.estimate import (
    Cluster,
    Costs,
    Estimate,
    checkpoint_bytes,
    costs,
    decode_ms,
    estimate,
    gpus_for,
    measured_rate,
    state_bytes,
)
from pipeline.peaks import PEAKS
from pipeline.settings import ConfigError
from shards.terminal import Parser, note, prepare, say

IMAGES, IMAGE_BYTES = 1_281_167, 110e3
VIDEOS, VIDEO_BYTES = 240_000, 1e6


def main() -> int:
    """Return 0, or 2 for a wrong recipe."""
    parser = Parser(__doc__)
    parser.add_argument("recipe", help="name of a recipe, or the path of a .yaml file")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="settings that override the recipe's"
    )
    parser.add_argument("--gpus", type=int, nargs="+", metavar="N", help="GPUs (8 to 1024 that divide the batch)")
    rate_of_one = parser.add_mutually_exclusive_group()
    rate_of_one.add_argument("--rates", type=Path, metavar="FILE", help="measured rates, from scripts/bench.py --json")
    rate_of_one.add_argument(
        "--images-per-second", "--clips-per-second", type=float, metavar="R", help="measured rate of one GPU"
    )
    parser.add_argument("--mfu", type=float, default=0.5, help="assumed without a measured rate (%(default)s)")
    gpu = PEAKS["H100"]
    parser.add_argument(
        "--peak", type=float, default=gpu.tflops, help=f"TFLOP/s of a GPU (%(default)s: {gpu.name}, bf16, dense)"
    )
    parser.add_argument("--gpus-per-node", type=int, default=8, help="(%(default)s)")
    parser.add_argument("--link", type=float, default=450, help="GB/s that a GPU can send within a node (%(default)s)")
    parser.add_argument("--network", type=float, default=400, help="GB/s that a node can send (%(default)s)")
    parser.add_argument("--latency", type=float, default=10, help="microseconds from one GPU to another (%(default)s)")
    parser.add_argument(
        "--samples", type=int, help=f"images ({IMAGES:,}: ImageNet-1k) or videos (about {VIDEOS:,}: Kinetics-400)"
    )
    parser.add_argument(
        "--image-bytes",
        "--video-bytes",
        type=float,
        metavar="B",
        help=f"mean of an encoded image ({IMAGE_BYTES:,.0f}) or video ({VIDEO_BYTES:,.0f}: 10 s, of --resize 256)",
    )
    parser.add_argument(
        "--decode-ms",
        type=float,
        metavar="MS",
        help="time of a CPU core per image or clip (docs/explanation/benchmarks.md has ours)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, in bytes and seconds")
    prepare()
    arguments = parser.parse_intermixed_args()
    numbers = {name: value for name, value in vars(arguments).items() if isinstance(value, int | float)}
    del numbers["json"]
    for name, value in numbers.items():
        if not (0 < value < math.inf or (name == "latency" and value == 0)):
            parser.error(f"--{name.replace('_', '-')} {value:g} is not a number above 0")
    try:
        recipe = load_recipe(arguments.recipe, [*arguments.overrides, *NO_DATA])
        cost = costs(recipe)
        rate = arguments.images_per_second or arguments.mfu * arguments.peak * 1e12 / cost.flops
        if arguments.rates:
            rate = measured_rate(arguments.rates, recipe)
        link, network, latency = arguments.link * 1e9, arguments.network * 1e9, arguments.latency / 1e6
        steps_of = {
            gpus: estimate(recipe, cost.size, rate, Cluster(gpus, arguments.gpus_per_node, link, network, latency))
            for gpus in arguments.gpus or gpus_for(recipe)
        }
    except ConfigError as error:
        note(f"error: {error}")
        return 2
    figures = figures_of(recipe, cost, rate, steps_of, arguments)
    if arguments.json:
        print(json.dumps(figures, indent=1))
        return 0
    if not arguments.samples and any(one.startswith(("data.shards=", "data.mixture")) for one in arguments.overrides):
        note("note: data sets are not read: give the number of samples with --samples")
    how = "measured" if arguments.images_per_second or arguments.rates else "assumed"
    share = f"{how}: {rate * cost.flops / (arguments.peak * 1e12):.1%} of {arguments.peak:g} TFLOP/s"
    tell_of_one_gpu(recipe, figures, share)
    tell_of_the_run(recipe, figures)
    return 0


def figures_of(
    recipe: Recipe, cost: Costs, rate: float, steps_of: dict[int, Estimate], arguments: Namespace
) -> dict[str, Any]:
    """Return the estimate as values of JSON: bytes, seconds, and inputs (images or clips, or views of them)."""
    clips, views, batch = recipe.data.clip is not None, recipe.views, recipe.optim.batch_size
    samples = arguments.samples or (VIDEOS if clips else IMAGES)
    size = arguments.image_bytes or (VIDEO_BYTES if clips else IMAGE_BYTES)
    decoding = arguments.decode_ms or decode_ms(recipe.data.clip)
    steps = round(recipe.optim.epochs * samples * views / batch)
    runs = []
    for gpus, step in steps_of.items():
        state = state_bytes(recipe, cost.size, gpus)
        seconds = steps * batch / step.images_per_second
        runs.append(
            {
                "gpus": gpus,
                "inputs_per_gpu": batch // gpus,
                "memory_bytes": state + recipe.micro_batch(gpus) * cost.activations,
                "compute_seconds": step.compute,
                "sent_bytes": step.sent,
                "wire_seconds": step.wire,
                "latency_seconds": step.latency,
                "inputs_per_second": step.images_per_second,
                "seconds": seconds,
                "gpu_seconds": seconds * gpus,
                "read_bytes_per_second": step.images_per_second / views * size,
            }
        )
    return {
        "parameters": cost.size.parameters,
        "flop_per_input": cost.flops,
        "inputs_per_second_per_gpu": rate,
        "decode_milliseconds": decoding,
        "decoding_cores_per_gpu": rate / recipe.masks * decoding / 1e3,  # an input is decoded once for all of its masks
        "samples": samples,
        "steps": steps,
        "batch_size": batch,
        "zero_stage": recipe.engine.zero_stage,
        "runs": runs,
        "read_bytes": steps * batch / views * size,
        "stored_bytes": samples * size,
        "checkpoint_bytes": checkpoint_bytes(cost.size, recipe.optim.name),
        "checkpoints_kept": recipe.run.keep,
        "checkpoints_written": math.ceil(steps / recipe.run.save_every),
    }


def tell_of_one_gpu(recipe: Recipe, figures: dict[str, Any], share: str) -> None:
    """Print the model, and one GPU's rate, its need of CPUs, and its memory."""
    decoded = "an image" if recipe.data.clip is None else "a clip"
    one = decoded if recipe.masks == 1 else "a view"
    rate = figures["inputs_per_second_per_gpu"]
    frames = "" if recipe.data.frames is None else f", {rate / recipe.masks * recipe.data.frames:,.0f} frames/s"
    parameters = f"{figures['parameters'] / 1e6:.1f}M parameters"
    cores, decoding = figures["decoding_cores_per_gpu"], figures["decode_milliseconds"]
    say(f"model     {parameters}, {figures['flop_per_input'] / 1e9:.1f} GFLOP {one}, forward and backward")
    say(f"one GPU   {rate:,.0f} {recipe.inputs}/s{frames}, {share}")
    say(f"decoding  {cores:,.1f} CPU cores a GPU at {decoding:.3g} ms {decoded}; by a GPU: not measured yet")


def tell_of_the_run(recipe: Recipe, figures: dict[str, Any]) -> None:
    """Print the schedule, its duration on each number of GPUs, and the bytes read and written."""
    views, batch = recipe.views, recipe.optim.batch_size
    many, kind = recipe.inputs, "images" if recipe.data.clip is None else "videos"
    made_of = f", {views} of each of {batch // views:,} {kind}" if views > 1 else ""
    say(f"data      {figures['samples']:,} {kind}; --samples N for another number")
    say(f"schedule  {figures['steps']:,} steps of {batch:,} {many}{made_of}, ZeRO {figures['zero_stage']}")
    columns = {  # each with its value, what it is divided by, and its format
        "GPUs": ("gpus", 1, ","),
        f"{many} each": ("inputs_per_gpu", 1, ","),
        "GB each": ("memory_bytes", 1e9, ",.1f"),
        "compute ms": ("compute_seconds", 1e-3, ".2f"),
        "sent MB": ("sent_bytes", 1e6, ",.0f"),
        "wire ms": ("wire_seconds", 1e-3, ".2f"),
        "latency ms": ("latency_seconds", 1e-3, ".2f"),
        f"{many}/s": ("inputs_per_second", 1, ",.0f"),
        "hours": ("seconds", 3600, ",.2f"),
        "GPU-hours": ("gpu_seconds", 3600, ",.1f"),
        "read GB/s": ("read_bytes_per_second", 1e9, ",.2f"),
    }
    table = Table(box=None)
    for column in columns:
        table.add_column(column, justify="right")
    for run in figures["runs"]:
        table.add_row(
            *(format(run[name] / unit if unit != 1 else run[name], form) for name, unit, form in columns.values())
        )
    Console(width=120).print(table)
    saves, checkpoint = figures["checkpoints_written"], figures["checkpoint_bytes"] / 1e9
    say(f"read      {figures['read_bytes'] / 1e12:,.1f} TB of {kind} in all")
    say(f"stored    {figures['stored_bytes'] / 1e12:,.2f} TB of {kind}")
    say(f"          {figures['checkpoints_kept']} checkpoints of {checkpoint:.2f} GB")
    say(f"written   {saves:,} checkpoints, {saves * checkpoint:,.0f} GB")
