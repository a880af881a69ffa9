"""What a recipe will take: hours, GPU-hours, memory, bytes read and stored, on 8 to 1,024 GPUs.

    python scripts/estimate.py vit_base_300e --gpus 8 64 --rates FILE [optim.batch_size=4096 ...]

`pipeline/estimate.py` says how a step is modelled, and what is not modelled.

Examples:

    python scripts/estimate.py vit_base_300e --images-per-second 2100
    python scripts/estimate.py vit_large_1600e --gpus 64 128 --rates rates.json optim.batch_size=4096
    python scripts/estimate.py mvit_small_300e_k400 --clips-per-second 300 --video-bytes 800e3
"""

import math
from argparse import Namespace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.config import Recipe, load_recipe
from pipeline.device import DTYPES
from pipeline.estimate import (
    STATE_BYTES,
    Cluster,
    Costs,
    Estimate,
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
# No data set is read, and the inputs of a mixture of images and videos all count as clips
_NO_DATA = ("data.mixture=null", "data.validation_images=null", "data.shards=not read here")
VIDEOS, VIDEO_BYTES = 240_000, 1e6


def main() -> int:
    """Exit status 0, or 2 for a wrong recipe."""
    parser = Parser(__doc__)
    parser.add_argument("recipe", help="name of a recipe, or the path of a .yaml file")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="settings that replace the recipe's"
    )
    parser.add_argument("--gpus", type=int, nargs="+", metavar="N", help="(8 to 1024 that divide the batch)")
    rate_of_one = parser.add_mutually_exclusive_group()
    rate_of_one.add_argument("--rates", type=Path, metavar="FILE", help="measured rates, from scripts/bench.py --json")
    rate_of_one.add_argument(
        "--images-per-second", "--clips-per-second", type=float, metavar="R", help="of one GPU, measured"
    )
    parser.add_argument("--mfu", type=float, default=0.5, help="assumed where no rate is given (%(default)s)")
    gpu = PEAKS["H100"]
    parser.add_argument(
        "--peak", type=float, default=gpu.tflops, help=f"TFLOP/s of a GPU (%(default)s: {gpu.name}, bf16, dense)"
    )
    parser.add_argument("--gpus-per-node", type=int, default=8, help="(%(default)s)")
    parser.add_argument("--link", type=float, default=450, help="GB/s a GPU sends within a node (%(default)s)")
    parser.add_argument("--network", type=float, default=400, help="GB/s a node sends (%(default)s)")
    parser.add_argument("--latency", type=float, default=10, help="microseconds from a GPU to another (%(default)s)")
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
        help="of a CPU core for an image or clip (docs/explanation/benchmarks.md has ours)",
    )
    prepare()
    arguments = parser.parse_intermixed_args()
    for name, value in vars(arguments).items():
        if isinstance(value, int | float) and not (0 < value < math.inf or (name == "latency" and value == 0)):
            parser.error(f"--{name.replace('_', '-')} {value:g} is not a number above 0")
    try:
        recipe = load_recipe(arguments.recipe, [*_NO_DATA, *arguments.overrides])
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
    how = "measured" if arguments.images_per_second or arguments.rates else "assumed"
    tell_of_one_gpu(recipe, cost, rate, f"{how}: {rate * cost.flops / (arguments.peak * 1e12):.1%}", arguments)
    tell_of_the_run(recipe, cost, steps_of, arguments)
    return 0


def tell_of_one_gpu(recipe: Recipe, cost: Costs, rate: float, share: str, arguments: Namespace) -> None:
    """Print the model, and what one GPU does a second, needs of the CPUs, and holds in its memory."""
    one, many = ("an image", "images") if recipe.data.clip is None else ("a clip", "clips")
    frames = "" if recipe.data.frames is None else f", {rate * recipe.data.frames:,.0f} frames/s"
    decoding = arguments.decode_ms or decode_ms(recipe.data.clip)
    cores = rate / recipe.masks * decoding / 1e3  # an input is decoded once for all of its masks
    parameters = f"{cost.size.parameters / 1e6:.1f}M parameters"
    say(f"model     {parameters}, {cost.flops / 1e9:.1f} GFLOP {one}, forward and backward")
    say(f"one GPU   {rate:,.0f} {many}/s{frames}, {share} of {arguments.peak:g} TFLOP/s")
    say(f"decoding  {cores:,.1f} CPU cores a GPU at {decoding:.3g} ms {one}; by a GPU: not measured yet")


def tell_of_the_run(recipe: Recipe, cost: Costs, steps_of: dict[int, Estimate], arguments: Namespace) -> None:
    """Print the schedule, what it takes on each number of GPUs, and what is read and written."""
    clips, views, batch = recipe.data.clip is not None, recipe.views, recipe.optim.batch_size
    many, kind = ("clips", "videos") if clips else ("images", "images")
    samples = arguments.samples or (VIDEOS if clips else IMAGES)
    size = arguments.image_bytes or (VIDEO_BYTES if clips else IMAGE_BYTES)
    steps = round(recipe.optim.epochs * samples * views / batch)
    made_of = f", {views} of each of {batch // views:,} {kind}" if views > 1 else ""
    seen = many if recipe.masks == 1 else "views"
    say(f"schedule  {steps:,} steps of {batch:,} {seen}{made_of}, ZeRO {recipe.engine.zero_stage}")
    table = Table(box=None)
    columns = ("GPUs", f"{many} each", "GB each", "compute ms", "sent MB", "wire ms", "latency ms", f"{many}/s")
    for column in (*columns, "hours", "GPU-hours", "read GB/s"):
        table.add_column(column, justify="right")
    for gpus, step in steps_of.items():
        hours = steps * batch / step.images_per_second / 3600
        item = DTYPES[recipe.engine.precision].itemsize
        state = state_bytes(cost.size.parameters, item, recipe.engine.zero_stage, gpus)
        numbers = (
            (state + recipe.micro_batch(gpus) * cost.activations) / 1e9,
            step.compute * 1e3,
            step.sent / 1e6,
            step.wire * 1e3,
            step.latency * 1e3,
            step.images_per_second,
            hours,
            hours * gpus,
            step.images_per_second / views * size / 1e9,
        )
        formats = (",.1f", ".2f", ",.0f", ".2f", ".2f", ",.0f", ",.2f", ",.1f", ",.2f")
        cells = (format(number, form) for number, form in zip(numbers, formats, strict=True))
        table.add_row(f"{gpus:,}", f"{batch // gpus:,}", *cells)
    Console(width=120).print(table)
    saves = math.ceil(steps / recipe.run.save_every)
    checkpoint = cost.size.parameters * STATE_BYTES / 1e9
    say(f"read      {steps * batch / views * size / 1e12:,.1f} TB of {kind} in all")
    say(f"stored    {samples * size / 1e12:,.2f} TB of {kind}")
    say(f"          {recipe.run.keep} checkpoints of {checkpoint:.2f} GB")
    say(f"written   {saves:,} checkpoints, {saves * checkpoint:,.0f} GB")
