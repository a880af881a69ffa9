"""What a recipe will take: hours, GPU-hours, bytes read and stored, on 8 to 1,024 GPUs.

    python scripts/estimate.py vit_base_300e --gpus 8 64 --rates FILE [optim.batch_size=4096 ...]

Modelled, a step of W ranks:
- Compute: images a rank / images per second of one GPU. That rate is taken from the --rates that `scripts/bench.py step
  --json` or `gpu` wrote, or given by --images-per-second, as measured from pixels to the optimizer step, or else
  assumed to be --mfu of --peak. An image costs six FLOP for every multiply-add of its forward pass, and two for every
  one of a teacher's.
- Wire: what each rank sends, (W - 1) / W times a multiple of the weights in the training precision, as counted with
  DeepSpeed 0.19, for m micro-batches: 2 at ZeRO 0 (all-reduce of the gradient), 3 at ZeRO 1 (the same, and all-gather
  of the weights), 2 m + 1 at ZeRO 2 (an all-reduce for each micro-batch), 2 m at ZeRO 3 (all-gather and reduce-scatter
  for each; models of over 10^9 weights gather twice). At the speed of --link within a node, and across nodes at that
  of all the network cards of one (--network), since rings run in parallel through all of them.
- Latency: log2(W) messages one after the other in every all-gather and reduce-scatter, twice in an all-reduce, each of
  --latency; after Thakur et al., "Optimization of Collective Communication Operations in MPICH", 2005.
- The step is the sum of the three, as if nothing of the wire were hidden behind the compute: an upper bound.

Not modelled: that small shares of a batch compute less efficiently; waiting for data or for the slowest rank;
optimizer and launches (they are in a measured rate); validation, checkpoints, restarts. docs/scaling.md compares this
with what CPU ranks did.

Examples:

    python scripts/estimate.py vit_base_300e --images-per-second 2100
    python scripts/estimate.py vit_large_1600e --gpus 64 128 --rates rates.json optim.batch_size=4096
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from model.flops import training_flops
from pipeline.build import build_masker, build_model, predictions_of
from pipeline.config import Recipe, load_recipe
from pipeline.recipes import reason
from pipeline.settings import ConfigError
from pipeline.targets.registry import TARGETS
from shards.files import parse_json
from shards.terminal import Parser, note, prepare, say

ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
STATE_BYTES = 12  # a parameter's fp32 weight and two Adam moments, as checkpoints hold them

# Defaults of DeepSpeed, in numbers of a tensor
BUCKET = 500_000_000  # reduced at once
GATHERED = 50_000_000  # ZeRO 3 gathers so many at once ahead of their use
PERSISTENT = 100_000  # it keeps smaller tensors whole, and gathers each after a step


@dataclass(frozen=True)
class Size:
    """Of a model: all its parameters, and how many tensors of at most `PERSISTENT` numbers there are."""

    parameters: int
    small_tensors: int


@dataclass(frozen=True)
class Cluster:
    """Ranks and what lies between them.

    Attributes:
        gpus: ranks.
        per_node: at most so many share a node.
        link: bytes a second that a GPU sends within a node.
        network: bytes a second that a node sends.
        latency: seconds from a rank to another.
    """

    gpus: int
    per_node: int
    link: float
    network: float
    latency: float

    @property
    def bandwidth(self) -> float:
        """Bytes a second of a rank in a collective of all."""
        return self.link if self.gpus <= self.per_node else min(self.link, self.network)


@dataclass(frozen=True)
class Estimate:
    """Of one number of GPUs: bytes that a rank sends in a step, seconds of its parts, images a second."""

    sent: float
    compute: float
    wire: float
    latency: float
    images_per_second: float


def wire_bytes(parameters: int, item_bytes: int, zero_stage: int, ranks: int, micro_batches: int) -> float:
    """What each rank sends in a step.

    Rajbhandari et al., "ZeRO", SC 2020, section 7, has less for stages 1 and 2, which could reduce-scatter.
    """
    times = {0: 2, 1: 3, 2: 2 * micro_batches + 1, 3: 2 * micro_batches}[zero_stage]
    return times * parameters * item_bytes * (ranks - 1) / ranks


def wire_rounds(size: Size, zero_stage: int, micro_batches: int) -> int:
    """Rounds of messages in a step, as multiples of log2(ranks)."""
    buckets = math.ceil(size.parameters / BUCKET)
    norm, groups = 2, 2  # an all-reduce of one number; all-gathers of what is decayed and what is not
    if zero_stage == 3:
        gathers = math.ceil(size.parameters / GATHERED)
        return micro_batches * (gathers + buckets) + size.small_tensors + 2 * norm
    return {0: 2 * buckets, 1: 2 * buckets + groups + norm, 2: 2 * buckets * micro_batches + groups + norm}[zero_stage]


def estimate(recipe: Recipe, size: Size, rate: float, cluster: Cluster) -> Estimate:
    """Model a step, see above; `rate` is images a second of one GPU.

    Raises:
        ConfigError: the batch cannot be shared out evenly.
    """
    batch, stage, gpus = recipe.optim.batch_size, recipe.engine.zero_stage, cluster.gpus
    if gpus < 1 or batch % gpus:
        raise ConfigError(
            f"optim.batch_size={batch} cannot be shared out evenly to {gpus} GPUs; give --gpus that divide it"
        )
    share = batch // gpus
    micro_batches = share // recipe.micro_batch(gpus)
    sent = wire_bytes(size.parameters, ITEM_BYTES[recipe.engine.precision], stage, gpus, micro_batches)
    compute, wire = share / rate, sent / cluster.bandwidth
    latency = wire_rounds(size, stage, micro_batches) * math.log2(gpus) * cluster.latency
    return Estimate(sent, compute, wire, latency, batch / (compute + wire + latency))


def measured_rate(file: Path, recipe: Recipe) -> float:
    """Images a second of one GPU, from what `scripts/bench.py` wrote of the recipe's model.

    Raises:
        ConfigError: there is none; the message names the command that measures it.
    """
    values = recipe.model_dump(mode="json")
    wanted = {
        "model.name": recipe.model.name,
        "model.options": values["model"]["options"],
        "data.image_size": recipe.data.image_size,
        "engine.precision": recipe.engine.precision,
        "engine.activation_checkpointing": recipe.engine.activation_checkpointing,
        "target.kind": recipe.target.kind,
        "target.teacher": recipe.target.teacher,
        "ranks": 1,
    }
    try:
        figures = parse_json(file.read_bytes())["figures"]
        found = [f for f in figures if f["unit"] == "images/s" and wanted.items() <= f["settings"].items()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--rates {file} was not written by scripts/bench.py --json: {reason(error)}") from None
    if not found:
        raise ConfigError(
            f"--rates {file} has no rate of {recipe.model.name} at {recipe.data.image_size} px in "
            f"{recipe.engine.precision} with this target: measure it with `scripts/bench.py step RECIPE --json {file}`"
        )
    same_stage = [f for f in found if f["settings"]["engine.zero_stage"] == recipe.engine.zero_stage]
    return float(max(f["achieved"] for f in same_stage or found))


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
        with torch.device("meta"):
            model = build_model(recipe)
        sizes = [parameter.numel() for parameter in model.parameters()]
        size = Size(sum(sizes), sum(1 for numbers in sizes if numbers <= PERSISTENT))
        flops = training_flops(model, build_masker(recipe, model).masked)
        flops += 2 * TARGETS[recipe.target.kind].macs(recipe.target, predictions_of(model.view))
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
