"""What a recipe will take: hours, GPU-hours, bytes read and stored, on 8 to 1,024 GPUs.

    python scripts/estimate.py vit_base_300e --gpus 8 64 --rates FILE [optim.batch_size=4096 ...]

`pipeline/estimate.py` says how a step is modelled, and what is not modelled.

Examples:

    python scripts/estimate.py vit_base_300e --images-per-second 2100
    python scripts/estimate.py vit_large_1600e --gpus 64 128 --rates rates.json optim.batch_size=4096
"""

import math
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.config import load_recipe
from pipeline.estimate import STATE_BYTES, Cluster, costs, estimate, measured_rate
from pipeline.settings import ConfigError
from shards.terminal import Parser, note, prepare, say


def main() -> int:
    """Exit status 0, or 2 for a wrong recipe."""
    parser = Parser(__doc__)
    parser.add_argument("recipe", help="name of a recipe, or the path of a .yaml file")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="settings that replace the recipe's"
    )
    parser.add_argument("--gpus", type=int, nargs="+", default=[8 * 2**i for i in range(8)], metavar="N")
    rate_of_one = parser.add_mutually_exclusive_group()
    rate_of_one.add_argument("--rates", type=Path, metavar="FILE", help="measured rates, from scripts/bench.py --json")
    rate_of_one.add_argument("--images-per-second", type=float, metavar="R", help="of one GPU, measured")
    parser.add_argument("--mfu", type=float, default=0.5, help="assumed where no rate is given (%(default)s)")
    parser.add_argument("--peak", type=float, default=989, help="TFLOP/s of a GPU (%(default)s: H100, bf16, dense)")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="(%(default)s)")
    parser.add_argument("--link", type=float, default=450, help="GB/s a GPU sends within a node (%(default)s)")
    parser.add_argument("--network", type=float, default=400, help="GB/s a node sends (%(default)s)")
    parser.add_argument("--latency", type=float, default=10, help="microseconds from a GPU to another (%(default)s)")
    parser.add_argument("--samples", type=int, default=1_281_167, help="images (%(default)s: ImageNet-1k)")
    parser.add_argument("--image-bytes", type=float, default=110e3, help="mean of an encoded image (%(default).0f)")
    prepare()
    arguments = parser.parse_intermixed_args()
    for name, value in vars(arguments).items():
        if isinstance(value, int | float) and not (0 < value < math.inf or (name == "latency" and value == 0)):
            parser.error(f"--{name.replace('_', '-')} {value:g} is not a number above 0")
    try:
        recipe = load_recipe(arguments.recipe, ["data.shards=not read here", *arguments.overrides])
        cost = costs(recipe)
        size, flops = cost.size, cost.flops
        rate = arguments.images_per_second or arguments.mfu * arguments.peak * 1e12 / flops
        if arguments.rates:
            rate = measured_rate(arguments.rates, recipe)
        steps = round(recipe.optim.epochs * arguments.samples / recipe.optim.batch_size)
        images = steps * recipe.optim.batch_size

        link, network, latency = arguments.link * 1e9, arguments.network * 1e9, arguments.latency / 1e6
        steps_of = {
            gpus: estimate(recipe, size, rate, Cluster(gpus, arguments.gpus_per_node, link, network, latency))
            for gpus in arguments.gpus
        }
    except ConfigError as error:
        note(f"error: {error}")
        return 2

    peak = f"{rate * flops / (arguments.peak * 1e12):.1%} of {arguments.peak:g} TFLOP/s"
    say(f"model     {size.parameters / 1e6:.1f}M parameters, {flops / 1e9:.1f} GFLOP an image, forward and backward")
    known = arguments.images_per_second or arguments.rates
    say(f"one GPU   {rate:,.0f} images/s, {'measured' if known else 'assumed'}: {peak}")
    say(f"schedule  {steps:,} steps of {recipe.optim.batch_size:,} images, ZeRO {recipe.engine.zero_stage}")
    table = Table(box=None)
    for column in (
        "GPUs",
        "images each",
        "compute ms",
        "sent MB",
        "wire ms",
        "latency ms",
        "images/s",
        "hours",
        "GPU-hours",
        "read GB/s",
    ):
        table.add_column(column, justify="right")
    for gpus, step in steps_of.items():
        hours = images / step.images_per_second / 3600
        read = step.images_per_second * arguments.image_bytes
        numbers = (
            step.compute * 1e3,
            step.sent / 1e6,
            step.wire * 1e3,
            step.latency * 1e3,
            step.images_per_second,
            hours,
            hours * gpus,
            read / 1e9,
        )
        formats = (".2f", ",.0f", ".2f", ".2f", ",.0f", ",.2f", ",.1f", ",.2f")
        cells = (format(number, form) for number, form in zip(numbers, formats, strict=True))
        table.add_row(f"{gpus:,}", f"{recipe.optim.batch_size // gpus:,}", *cells)
    Console(width=110).print(table)
    saves = math.ceil(steps / recipe.run.save_every)
    checkpoint = size.parameters * STATE_BYTES / 1e9
    say(f"read      {images * arguments.image_bytes / 1e12:,.1f} TB of images in all")
    say(f"stored    {arguments.samples * arguments.image_bytes / 1e12:,.2f} TB of images")
    say(f"          {recipe.run.keep} checkpoints of {checkpoint:.2f} GB")
    say(f"written   {saves:,} checkpoints, {saves * checkpoint:,.0f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
