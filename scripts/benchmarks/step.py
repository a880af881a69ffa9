"""Measure the training step on data that are already on the device, beside plain PyTorch."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.figures import Figure
from benchmarks.hardware import matrix_product, synchronise
from benchmarks.plain import PlainEngine
from benchmarks.racing import ROUNDS, compare, race
from benchmarks.wire import Wire, latency_and_bandwidth
from model.flops import training_flops
from pipeline.build import build_examples, build_model, compile_forward
from pipeline.cluster.phases import Phases
from pipeline.cluster.world import World
from pipeline.config import NO_DATA, Recipe, load_recipe
from pipeline.data.batch import Batch
from pipeline.data.request import Request
from pipeline.device import DTYPES
from pipeline.estimate import wire_bytes
from pipeline.peaks import peak
from pipeline.pretrain.task import MaskedPrediction
from pipeline.train.engine import Engine
from pipeline.train.meter import Meter
from pipeline.train.setup import micro_batches
from pipeline.train.state import set_weights
from pipeline.train.step import Stepper

STEPS_PER_EPOCH = 1000  # of the schedule, which only decides the learning rate here
SETTINGS = (  # settings that a rate depends on
    "model.name",
    "model.options",
    "model.decoder",
    "model.decoder_width",
    "mask.ratio",
    "mask.repeats",
    "data.image_size",
    "data.frames",
    "target.kind",
    "target.teacher",
    "engine.zero_stage",
    "engine.precision",
    "engine.compile",
    "engine.activation_checkpointing",
)

# A micro-batch on the device: uint8 images (B, 3, H, W) or clips (B, 3, frames, H, W), and int64 mask keys (B,)
Pixels = tuple[Tensor, Tensor]


def step_recipe(settings: list[str], images: int | None, world: World, shards: Path | None = None) -> Recipe:
    """Return a recipe with one micro-batch per step.

    Args:
        settings: the recipe's name, if not the default (a large model on a GPU, a small one on a CPU), and overrides.
        images: images per rank; None: 256 on a GPU, 16 on a CPU.
        world: the processes.
        shards: a data set to read, instead of those of the recipe; None: none is read.

    Raises:
        ConfigError: see `load_recipe`.
    """
    gpu = world.device.type == "cuda"
    named = bool(settings) and "=" not in settings[0]
    name = settings[0] if named else "vit_base_300e" if gpu else "demo"
    batch = (images or (256 if gpu else 16)) * world.size
    own = [f"optim.batch_size={batch}", "engine.micro_batch=null"]
    read = [f"data.shards={shards}"] if shards else []
    return load_recipe(name, [*own, *settings[named:], *NO_DATA, *read])


def settings_of(recipe: Recipe, world: World) -> dict[str, Any]:
    """Return the settings that a rate of training depends on."""
    values = recipe.model_dump(mode="json")
    chosen = {key: values[key.split(".")[0]][key.split(".")[1]] for key in SETTINGS}
    return chosen | {"ranks": world.size, "images a rank": recipe.micro_batch(world.size)}


class Loop:
    """Takes training steps of one rank with a run's `Stepper`, without its reports.

    Args:
        recipe: `engine.compile` decides what is compiled.
        world: the processes.
        engine: the engine.
        mode: mode of `torch.compile`; None: its default.

    Attributes:
        images: images per step, over all ranks; with `mask.repeats`, one for each mask.
        flops: FLOP of training on one image.
        loss: loss of this rank's last micro-batch, float32 on the device.
    """

    def __init__(
        self, recipe: Recipe, world: World, engine: type[Engine | PlainEngine] = Engine, mode: str | None = None
    ) -> None:
        torch.manual_seed(recipe.run.seed)
        with world.device:  # a large model takes seconds to draw on a CPU
            model = build_model(recipe).to(world.device)
        if recipe.engine.compile == "all":
            compile_forward(model, mode)
        self.recipe, self.world = recipe, world
        self.images = recipe.optim.batch_size
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.examples = build_examples(recipe, model, DTYPES[recipe.engine.precision], world.device)
        self.flops = training_flops(model, self.examples.masker.masked)
        self.loss = torch.zeros((), device=world.device)
        self.micro_batches = micro_batches(recipe, world)
        exact = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        micro_batch = recipe.micro_batch(world.size)
        self.engine = engine(model, recipe.engine, recipe.optim, micro_batch, world, STEPS_PER_EPOCH)
        if isinstance(self.engine, Engine):
            set_weights(self.engine, exact)
        phases = Phases(recipe.run.dir, world.rank, recipe.run.deadline)  # names phases for profiles only
        task = MaskedPrediction(self.examples, recipe.masks, recipe.augment)
        self._stepper = Stepper(task, self.engine, world, phases, recipe.run.seed, self.micro_batches)
        self._steps = 0

    def step(self, batches: Iterator[Pixels]) -> None:
        """Take a step's micro-batches, and update the weights."""
        self.loss = self._stepper.train(self._steps, _as_batches(batches), Meter(self.world.device))
        self._steps += 1

    def steps(self, times: int, batches: Iterator[Pixels]) -> int:
        """Take `times` steps, to their end on the device; return the number of images over all ranks."""
        for _ in range(times):
            self.step(batches)
        synchronise(self.world.device)
        return times * self.images


def _as_batches(pixels: Iterator[Pixels]) -> Iterator[Batch]:
    """Yield the batches that a loader would make from these images, all good."""
    for images, keys in pixels:
        ids = np.arange(len(images), dtype=np.int64)
        boxes = np.zeros((len(ids), 4), np.int32)
        request = Request(0, ids, boxes, np.zeros(len(ids), np.int32), ids, np.ones(len(ids), np.float32))
        yield Batch(request, images, keys, torch.ones(len(images), device=images.device), [])


def resident(recipe: Recipe, world: World) -> Iterator[Pixels]:
    """Yield one micro-batch of random pixels repeatedly, in the decoder's memory format."""
    size, micro, frames = recipe.data.size, recipe.micro_batch(world.size) // recipe.masks, recipe.data.frames
    shape, generator = (micro, 3, frames or 1, *size), torch.Generator().manual_seed(world.rank)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(world.device)
    images = images.squeeze(2) if frames is None else images
    if world.device.type == "cuda":
        images = images.contiguous(memory_format=torch.channels_last if frames is None else torch.channels_last_3d)
    return repeat((images, torch.arange(micro, device=world.device)))


def both_loops(recipe: Recipe, world: World) -> dict[str, Loop]:
    """Return this project's loop and, without gradient accumulation, plain PyTorch's, by name.

    Compiled ones come first, if the recipe compiles, then eager ones.
    """
    engines: dict[str, type[Engine | PlainEngine]] = {f"DeepSpeed ZeRO {recipe.engine.zero_stage}": Engine}
    if recipe.optim.batch_size == recipe.micro_batch(world.size) * world.size:
        engines["plain PyTorch"] = PlainEngine
    recipes = {"eager": recipe}
    if recipe.engine.compile == "all":
        engine = recipe.engine.model_copy(update={"compile": "target"})
        recipes = {"compiled": recipe, "eager": recipe.model_copy(update={"engine": engine})}
    return {f"{name}, {how}": Loop(recipes[how], world, kind) for how in recipes for name, kind in engines.items()}


def step(loops: Mapping[str, Loop], times: int, tflops: float | None = None, rounds: int = ROUNDS) -> list[Figure]:
    """Measure the first loop beside the others, and the parts of a step. All ranks call this together.

    Args:
        loops: loops of one model and batch.
        times: steps per round.
        tflops: peak of a device; None: that of a known GPU.
        rounds: number of rounds in which the loops take turns.
    """
    first = next(iter(loops.values()))
    recipe, world = first.recipe, first.world
    batches = resident(recipe, world)
    contestants: dict[str, Callable[[], int]] = {
        name: partial(loop.steps, times, batches) for name, loop in loops.items()
    }
    contestants["targets and masks"] = partial(_examples, first, times, batches)
    product = f"a product of matrices, {recipe.engine.precision}"
    contestants[product] = matrix_product(world.device, DTYPES[recipe.engine.precision], times=3)
    rates = race(contestants, rounds)

    rates[product] *= world.size / first.flops
    targets = rates.pop("targets and masks")
    limits = [product]
    card = peak()
    if tflops:
        limits.append(f"{tflops:g} TFLOP/s a device")
        rates[limits[-1]] = tflops * 1e12 * world.size / first.flops
    elif card and recipe.engine.precision != "fp32":
        limits.append(f"{card.tflops:g} TFLOP/s, bf16 on an {card.name}")
        rates[limits[-1]] = card.tflops * 1e12 * world.size / first.flops
    what, unit = f"training step, {title(recipe, world)}", f"{inputs_of(recipe)}/s"
    images = compare(what, unit, rates, limits, settings_of(recipe, world))
    to_tflops = first.flops / 1e12 / world.size
    others = list(loops.items())[1:]
    figures = [
        images,
        Figure(
            f"the same a device, {first.flops / 1e9:.3g} GFLOP for each of the {inputs_of(recipe)}",
            "TFLOP/s",
            images.achieved * to_tflops,
            limits={name: rates[name] * to_tflops for name in limits},
        ),
        Figure("targets and masks, alone", "share of a step", images.achieved / targets),
        Figure("loss after equally many steps", "", float(first.loss), {name: float(it.loss) for name, it in others}),
    ]
    if world.size > 1:
        counted = [it for it in loops.values() if it.recipe.engine.compile != "all" and isinstance(it.engine, Engine)]
        figures += _wire(counted[0], batches)
    return figures


def title(recipe: Recipe, world: World) -> str:
    """Describe what is trained, in words."""
    model, options = recipe.model.name, recipe.model.options
    chosen = "".join(f", {name} {value}" for name, value in options.items())
    frames, size = recipe.data.frames, recipe.data.size.setting
    inputs = f"{size} px" if frames is None else f"{frames} frames of {size} px"
    return (
        f"{model}{chosen}, {inputs}, {recipe.micro_batch(world.size)} {inputs_of(recipe)} a "
        f"rank, {recipe.engine.precision}, ranks: {world.size}"
    )


def inputs_of(recipe: Recipe) -> str:
    """Return the word for the model's inputs: images or clips."""
    return "images" if recipe.data.frames is None else "clips"


def _examples(loop: Loop, times: int, batches: Iterator[Pixels]) -> int:
    for _ in range(times):
        loop.examples.example(*next(batches), loop.recipe.masks)
    synchronise(loop.world.device)
    return times * loop.images // loop.micro_batches


def _wire(loop: Loop, batches: Iterator[Pixels]) -> list[Figure]:
    """Measure the bytes that a step sends, beside `estimate.py`, and their speed."""
    recipe, world = loop.recipe, loop.world
    with Wire(world.size) as wire:
        loop.step(batches)
    item = DTYPES[recipe.engine.precision].itemsize
    reckoned = wire_bytes(loop.parameters, item, recipe.engine.zero_stage, world.size, loop.micro_batches)
    latency, bandwidth = latency_and_bandwidth(world, DTYPES[recipe.engine.precision])
    return [
        Figure("sent by a rank in a step, counted", "bytes", wire.sent, {"by estimate.py": reckoned}),
        Figure("rounds of messages in a step, counted", "log2(ranks)", wire.rounds),
        Figure("latency of a round of messages", "us", latency * 1e6),
        Figure("bandwidth of all-reduce", "GB/s sent by a rank", bandwidth / 1e9),
    ]
