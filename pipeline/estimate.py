"""Estimate a run of pre-training on many GPUs, by a model of its step. `maskfeat estimate` prints it.

The model of a step of W ranks:
- Compute: images per rank / images per second of one GPU, or clips, if these are the inputs. That rate comes from the
  --rates of `scripts/bench.py step --json` or `gpu`, or from --images-per-second, measured from pixels to the optimizer
  step, or is assumed to be --mfu of --peak. An image costs six FLOP per multiply-add of its forward pass, and two per
  multiply-add of a teacher's.
- Wire: the bytes sent per rank, (W - 1) / W times a multiple of the weights in the training precision, as counted with
  DeepSpeed 0.19, for m micro-batches: 2 at ZeRO 0 (all-reduce of the gradient), 3 at ZeRO 1 (the same, and all-gather
  of the weights), 2 m + 1 at ZeRO 2 (an all-reduce for each micro-batch), 2 m at ZeRO 3 (all-gather and reduce-scatter
  for each; models of over 10^9 weights gather twice). At the speed of --link within a node, and across nodes at that
  of all the network cards of one (--network), since rings run in parallel through all of them.
- Latency: log2(W) consecutive messages in every all-gather and reduce-scatter, twice in an all-reduce, each of
  --latency; after Thakur et al., "Optimization of Collective Communication Operations in MPICH", 2005.
- The step is the sum of the three, without overlap of communication and compute: an upper bound.

Besides the step:
- Memory of a GPU: weights and the sum of their gradients, the fp32 weights and the optimizer's state (two moments of
AdamW and LAMB, one of Lion and SGDW), which ZeRO partitions from stage 1 on, and the activations of a micro-batch. At
stage 3 weights and gradients are partitioned, too.
That is a lower bound: buffers, temporary tensors, and the decoder's memory are not included.
- Decoding on CPUs: the times of docs/explanation/benchmarks.md; for clips per frame that has to be decoded.

Not modelled: lower efficiency of small micro-batches; waiting for data or for the slowest rank;
optimizer and launches (they are in a measured rate); validation, checkpoints, restarts. docs/explanation/scaling.md
compares this with measurements on CPU ranks.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from model.activations import activation_bytes
from model.flops import training_flops
from model.maskfeat import MaskFeat
from pipeline.build import build_masker, build_model, predictions_of
from pipeline.config import Recipe, TrainingRecipe
from pipeline.data.clips import placed_clips
from pipeline.data.settings import Clip
from pipeline.device import DTYPES
from pipeline.optimizers import OPTIMIZERS
from pipeline.recipe_files import reason
from pipeline.settings import ConfigError
from pipeline.targets.registry import macs
from pipeline.targets.target import TargetError
from shards.files import parse_json

# CPU milliseconds of decoding and cropping to 224 pixels, from docs/explanation/benchmarks.md: of an image of ImageNet
# (654/s on 2 threads), and for a clip of a frame that is decoded, used or not (40 for 16 frames 4 apart, after
# --resize 256)
IMAGE_MS = 2e3 / 654
DECODED_FRAME_MS = 40 / 68.5
_VIDEO, _RATE = 300, 30.0  # frames of a Kinetics video, and frames per second
_TO_KEY_FRAME = 7.5  # frames from the key frame to a clip that begins anywhere, with a key frame every 16

# DeepSpeed's defaults, in elements
BUCKET = 500_000_000  # elements reduced at once
GATHERED = 50_000_000  # elements that ZeRO 3 gathers ahead of their use
PERSISTENT = 100_000  # it keeps smaller tensors whole, and gathers each after a step


@dataclass(frozen=True)
class Size:
    """The size of a model: all its parameters, and the number of tensors with at most `PERSISTENT` elements."""

    parameters: int
    small_tensors: int


@dataclass(frozen=True)
class Cluster:
    """Ranks and their connections.

    Attributes:
        gpus: number of ranks.
        per_node: most ranks per node.
        link: bytes per second that a GPU sends within a node.
        network: bytes per second that a node sends.
        latency: seconds from one rank to another.
    """

    gpus: int
    per_node: int
    link: float
    network: float
    latency: float

    @property
    def bandwidth(self) -> float:
        """Bytes per second of a rank in a collective of all ranks."""
        return self.link if self.gpus <= self.per_node else min(self.link, self.network)


@dataclass(frozen=True)
class Estimate:
    """The estimate for one number of GPUs: bytes sent per rank and step, seconds of its parts, images per second."""

    sent: float
    compute: float
    wire: float
    latency: float
    images_per_second: float


def wire_bytes(parameters: int, item_bytes: int, zero_stage: int, ranks: int, micro_batches: int) -> float:
    """Return the bytes that each rank sends per step.

    Rajbhandari et al., "ZeRO", SC 2020, section 7, has less for stages 1 and 2, which could reduce-scatter.
    """
    times = {0: 2, 1: 3, 2: 2 * micro_batches + 1, 3: 2 * micro_batches}[zero_stage]
    return times * parameters * item_bytes * (ranks - 1) / ranks


def wire_rounds(size: Size, zero_stage: int, micro_batches: int) -> int:
    """Return the rounds of messages per step, as multiples of log2(ranks)."""
    buckets = math.ceil(size.parameters / BUCKET)
    norm, groups = 2, 2  # an all-reduce of one number; all-gathers of the groups with and without decay
    if zero_stage == 3:
        gathers = math.ceil(size.parameters / GATHERED)
        return micro_batches * (gathers + buckets) + size.small_tensors + 2 * norm
    return {0: 2 * buckets, 1: 2 * buckets + groups + norm, 2: 2 * buckets * micro_batches + groups + norm}[zero_stage]


def estimate(recipe: Recipe, size: Size, rate: float, cluster: Cluster) -> Estimate:
    """Model a step, see above; `rate` is images per second of one GPU.

    Raises:
        ConfigError: the batch cannot be divided evenly.
    """
    batch, stage, gpus = recipe.optim.batch_size, recipe.engine.zero_stage, cluster.gpus
    if gpus < 1 or batch % gpus:
        raise ConfigError(
            f"optim.batch_size={batch} cannot be divided evenly among {gpus} GPUs; give --gpus that divide it"
        )
    share = batch // gpus
    micro_batches = share // recipe.micro_batch(gpus)
    sent = wire_bytes(size.parameters, DTYPES[recipe.engine.precision].itemsize, stage, gpus, micro_batches)
    compute, wire = share / rate, sent / cluster.bandwidth
    latency = wire_rounds(size, stage, micro_batches) * math.log2(gpus) * cluster.latency
    return Estimate(sent, compute, wire, latency, batch / (compute + wire + latency))


def gpus_for(recipe: Recipe) -> list[int]:
    """Return those of 8, 16, ..., 1024 GPUs that divide a recipe's batch; if none, one."""
    samples, rest = divmod(recipe.optim.batch_size, recipe.views)
    return [gpus for gpus in (8 * 2**power for power in range(8)) if rest == samples % gpus == 0] or [1]


def checkpoint_bytes(size: Size, optimizer: str) -> int:
    """Return the bytes of a checkpoint: of every parameter its fp32 weight, and what this optimizer keeps of it."""
    return 4 * size.parameters * (1 + len(OPTIMIZERS[optimizer].states))


def state_bytes(recipe: TrainingRecipe, size: Size, ranks: int) -> float:
    """Return a GPU's bytes for weights, the sum of their gradients, fp32 weights and the optimizer's state."""
    stage, gradients = recipe.engine.zero_stage, 4
    everywhere = size.parameters * (DTYPES[recipe.engine.precision].itemsize + gradients)
    partitioned = checkpoint_bytes(size, recipe.optim.name)
    return everywhere / (ranks if stage == 3 else 1) + partitioned / (ranks if stage else 1)


def decoded_frames(clip: Clip) -> float:
    """Return how many frames are decoded for a clip of a typical Kinetics video, 10 s at 30 frames per second."""
    ((first, *_, last),) = placed_clips(np.array([_VIDEO]), np.array([_RATE]), clip) if clip.frames > 1 else ((0, 0),)
    return float(last - first + 1) + _TO_KEY_FRAME


def decode_ms(clip: Clip | None) -> float:
    """Return the CPU milliseconds to decode an input: an image or, with `clip`, a clip."""
    return IMAGE_MS if clip is None else DECODED_FRAME_MS * decoded_frames(clip)


def measured_rate(file: Path, recipe: Recipe) -> float:
    """Return images or clips per second of one GPU, from `scripts/bench.py`'s results for the recipe's model.

    Raises:
        ConfigError: there is no such rate; the message names the command that measures it.
    """
    values = recipe.model_dump(mode="json")
    wanted = {
        "model.name": recipe.model.name,
        "model.options": values["model"]["options"],
        "data.image_size": values["data"]["image_size"],
        "data.frames": recipe.data.frames,
        "engine.precision": recipe.engine.precision,
        "engine.activation_checkpointing": recipe.engine.activation_checkpointing,
        "target.kind": recipe.target.kind,
        "target.teacher": recipe.target.teacher,
        "ranks": 1,
        "model.decoder": recipe.model.decoder,
        "mask.repeats": recipe.masks,
    }
    if recipe.model.decoder:
        wanted |= {"model.decoder_width": recipe.model.decoder_width, "mask.ratio": recipe.mask.ratio}
    unsaid = {"data.frames": None, "model.decoder": None, "mask.repeats": 1}  # missing in files of earlier versions
    try:
        figures = [f for f in parse_json(file.read_bytes())["figures"] if f["unit"] in ("images/s", "clips/s")]
        found = [f for f in figures if wanted.items() <= (unsaid | f["settings"]).items()]
    except OSError as error:
        raise ConfigError(f"--rates {file} cannot be read: {error.strerror}: correct the path") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--rates {file} was not written by scripts/bench.py --json: {reason(error)}") from None
    if not found:
        frames = f", {recipe.data.frames} frames," if recipe.data.frames else ""
        decoder = ", decoder and mask.ratio" if recipe.model.decoder else ""
        repeats = f" and mask.repeats={recipe.masks}" if recipe.masks > 1 else ""
        raise ConfigError(
            f"--rates {file} does not have a rate of {recipe.model.name} at {recipe.data.size.setting} px{frames} in "
            f"{recipe.engine.precision} with this target{decoder}{repeats}: measure it with "
            f"`scripts/bench.py step RECIPE --json {file}`"
        )
    same_stage = [f for f in found if f["settings"]["engine.zero_stage"] == recipe.engine.zero_stage]
    return float(max(f["achieved"] for f in same_stage or found))


@dataclass(frozen=True)
class Costs:
    """The size of a model, and the cost of one input: FLOP to train on it, and bytes of its activations."""

    size: Size
    flops: int
    activations: int


def costs(recipe: Recipe) -> Costs:
    """Count the parameters of a recipe's model, and the cost of one input, including a teacher's FLOP.

    Raises:
        ConfigError: the model or its target cannot be built.
    """
    with torch.device("meta"):
        model = build_model(recipe)
    sizes = [parameter.numel() for parameter in model.parameters()]
    size = Size(sum(sizes), sum(1 for numbers in sizes if numbers <= PERSISTENT))
    masked = build_masker(recipe, model.view).masked
    flops = input_flops(recipe, model, masked)
    activations = activation_bytes(model.to(DTYPES[recipe.engine.precision]), masked)
    return Costs(size, flops, activations)


def input_flops(recipe: Recipe, model: MaskFeat, masked: int) -> int:
    """Count the FLOP to train on one input, `masked` of whose patches are described, with its share of a teacher's.

    A teacher describes an image once for all of its masks.

    Raises:
        ConfigError: the target cannot be.
    """
    try:
        teacher = macs(recipe.target, predictions_of(model.view))
    except TargetError as error:
        raise ConfigError(str(error)) from error
    return training_flops(model, masked) + 2 * teacher // recipe.masks
