"""What a recipe will take: hours, GPU-hours, bytes read and stored, on 8 to 1,024 GPUs.

    python scripts/estimate.py vit_base_300e --gpus 8 64 --images-per-second 4700 [optim.batch_size=4096 ...]

Modelled, a step of W ranks:
- Compute: images a rank / images per second of one GPU. That rate is given by --images-per-second, as measured from
  pixels to the optimizer step, or else assumed to be --mfu of --peak. An image costs six FLOP for every multiply-add
  of its forward pass: two forward, four backward.
- Wire: what each rank sends, (W - 1) / W of 2 x parameters (ZeRO 0: all-reduce of gradients; 1: reduce-scatter of
  gradients, all-gather of weights), in bytes of the training precision; for ZeRO 2 the gradients once for each
  micro-batch; for ZeRO 3 gradients and twice the weights for each (engine.micro_batch, or the rank's share if that is
  smaller). At the speed of --link within a node, and across
  nodes at that of all the network cards of one (--network), since rings run in parallel through all of them.
- The step is the sum of the two, as if none of the wire were hidden behind the compute: an upper bound.

Not modelled: latency of collectives; that small shares of a batch compute less efficiently; waiting for data or for
the slowest rank; optimizer and launches (they are in a measured rate); validation, checkpoints, restarts.
"""

import argparse
import math
import sys
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from model.maskfeat import MaskFeat
from pipeline.build import build_model
from pipeline.config import ConfigError, Recipe, load_recipe
from pipeline.targets.masking import masked_patches

ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
STATE_BYTES = 12  # a parameter's fp32 weight and two Adam moments, as checkpoints hold them


def forward_macs(model: MaskFeat, masked: int) -> int:
    """Multiply-adds of the matrix products of one image's forward pass, `masked` of whose patches are described."""
    patches = model.grid[0] * model.grid[1]
    tokens: int = patches + model.encoder.num_prefix_tokens
    width: int = model.encoder.embed_dim
    embedding: int = patches * model.encoder.patch_embed.proj.weight.numel()
    linear: int = sum(m.weight.numel() for m in model.encoder.blocks.modules() if isinstance(m, nn.Linear))
    attention = len(model.encoder.blocks) * 2 * tokens**2 * width  # queries by keys, weights by values
    head = masked * model.head.weight.numel()
    return embedding + tokens * linear + attention + head


def wire_bytes(parameters: int, item_bytes: int, zero_stage: int, ranks: int, micro_batches: int) -> float:
    """What each rank sends in a step. After Rajbhandari et al., "ZeRO", SC 2020, section 7."""
    times = {0: 2, 1: 2, 2: micro_batches + 1, 3: 3 * micro_batches}[zero_stage]
    return times * parameters * item_bytes * (ranks - 1) / ranks


@dataclass(frozen=True)
class Estimate:
    """Of one number of GPUs: bytes that a rank sends in a step, seconds of compute and of the wire, images a second."""

    sent: float
    compute: float
    wire: float
    images_per_second: float


def estimate(
    recipe: Recipe, parameters: int, rate: float, gpus: int, gpus_per_node: int, link: float, network: float
) -> Estimate:
    """Model a step, see above.

    Args:
        recipe: gives batch, ZeRO stage and precision.
        parameters: of the model.
        rate: images a second of one GPU.
        gpus: ranks.
        gpus_per_node: at most so many of them share a node.
        link: bytes a second that a GPU sends within a node.
        network: bytes a second that a node sends.

    Raises:
        ConfigError: the batch cannot be shared out evenly.
    """
    if gpus < 1 or recipe.optim.batch_size % gpus:
        raise ConfigError(f"optim.batch_size={recipe.optim.batch_size} cannot be shared out evenly to {gpus} GPUs")
    share = recipe.optim.batch_size // gpus
    micro_batches = math.ceil(share / (recipe.engine.micro_batch or share))
    sent = wire_bytes(parameters, ITEM_BYTES[recipe.engine.precision], recipe.engine.zero_stage, gpus, micro_batches)
    compute = share / rate
    wire = sent / (link if gpus <= gpus_per_node else min(link, network))
    return Estimate(sent, compute, wire, recipe.optim.batch_size / (compute + wire))


def main() -> int:
    """Exit status 0, or 2 for a wrong recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="name of a recipe, or the path of a .yaml file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8 * 2**i for i in range(8)], metavar="N")
    parser.add_argument("--images-per-second", type=float, metavar="R", help="of one GPU, measured")
    parser.add_argument("--mfu", type=float, default=0.5, help="assumed where no rate is given (%(default)s)")
    parser.add_argument("--peak", type=float, default=989, help="TFLOP/s of a GPU (%(default)s: H100, bf16, dense)")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="(%(default)s)")
    parser.add_argument("--link", type=float, default=450, help="GB/s a GPU sends within a node (%(default)s)")
    parser.add_argument("--network", type=float, default=400, help="GB/s a node sends (%(default)s)")
    parser.add_argument("--samples", type=int, default=1_281_167, help="images (%(default)s: ImageNet-1k)")
    parser.add_argument("--image-bytes", type=float, default=110e3, help="mean of an encoded image (%(default).0f)")
    arguments = parser.parse_intermixed_args()
    try:
        recipe = load_recipe(arguments.recipe, ["data.shards=not read here", *arguments.overrides])
        with torch.device("meta"):
            model = build_model(recipe)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        flops = 6 * forward_macs(model, masked_patches(model.grid, recipe.mask.ratio))
        rate = arguments.images_per_second or arguments.mfu * arguments.peak * 1e12 / flops
        steps = round(recipe.optim.epochs * arguments.samples / recipe.optim.batch_size)
        images = steps * recipe.optim.batch_size

        steps_of = {
            gpus: estimate(
                recipe, parameters, rate, gpus, arguments.gpus_per_node, arguments.link * 1e9, arguments.network * 1e9
            )
            for gpus in arguments.gpus
        }
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    peak = f"{rate * flops / (arguments.peak * 1e12):.1%} of {arguments.peak:g} TFLOP/s"
    print(f"model     {parameters / 1e6:.1f}M parameters, {flops / 1e9:.1f} GFLOP an image, forward and backward")
    print(f"one GPU   {rate:,.0f} images/s, {'measured' if arguments.images_per_second else 'assumed'}: {peak}")
    print(f"schedule  {steps:,} steps of {recipe.optim.batch_size:,} images, ZeRO {recipe.engine.zero_stage}")
    table = Table(box=None)
    for column in (
        "GPUs",
        "images each",
        "compute ms",
        "sent MB",
        "wire ms",
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
            step.images_per_second,
            hours,
            hours * gpus,
            read / 1e9,
        )
        formats = (".2f", ",.0f", ".2f", ",.0f", ",.2f", ",.1f", ",.2f")
        cells = (format(number, form) for number, form in zip(numbers, formats, strict=True))
        table.add_row(f"{gpus:,}", f"{recipe.optim.batch_size // gpus:,}", *cells)
    Console(width=100).print(table)
    saves = math.ceil(steps / recipe.run.save_every)
    checkpoint = parameters * STATE_BYTES / 1e9
    print(f"read      {images * arguments.image_bytes / 1e12:,.1f} TB of images in all")
    print(f"stored    {arguments.samples * arguments.image_bytes / 1e12:,.2f} TB of images")
    print(f"          {recipe.run.keep} checkpoints of {checkpoint:.2f} GB")
    print(f"written   {saves:,} checkpoints, {saves * checkpoint:,.0f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
