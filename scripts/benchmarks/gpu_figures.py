"""How fast a GPU is at what a run asks of it: the timed parts of `scripts/bench.py gpu`."""

import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from benchmarks.data import decode
from benchmarks.end_to_end import end_to_end
from benchmarks.figures import Figure
from benchmarks.hardware import synchronise
from benchmarks.plain import PlainEngine
from benchmarks.racing import race
from benchmarks.scale import Scale
from benchmarks.step import Loop, resident, step, title
from benchmarks.targets import hog, masks
from estimate import STATE_BYTES
from pipeline.config import Recipe
from pipeline.train.checkpoint import Facts
from pipeline.train.engine import Engine
from pipeline.train.saver import Saver
from pipeline.train.state import capture, captured_shapes, counters
from pipeline.train.world import join

THREADS = 8  # of readers and decoders


def hog_and_image(scale: Scale, shards: Path) -> list[Figure]:
    """The kernel against its memory floor and the official definition."""
    return [] if scale.dry else hog(224, scale.device, 256)  # needs CUDA graphs


def masks_alone(scale: Scale, shards: Path) -> list[Figure]:
    """Masks; compiled on a GPU."""
    return masks(scale.device)


def decoding(scale: Scale, shards: Path) -> list[Figure]:
    """Crops, without and with the JPEG hardware."""
    return decode(shards, THREADS, scale.check_size[0], scale.device, scale.decode_images)


def step_base(scale: Scale, shards: Path) -> list[Figure]:
    """ViT-B: ZeRO stages and plain PyTorch, compiled and eager."""
    return _step(scale, scale.base, eager=True)


def step_large(scale: Scale, shards: Path) -> list[Figure]:
    """ViT-L: ZeRO stages and plain PyTorch, compiled."""
    return _step(scale, scale.large, eager=False)


def _step(scale: Scale, recipe: Callable[..., Recipe], eager: bool) -> list[Figure]:
    world, compiled = join(), f"engine.compile={scale.compiled}"
    contestants: dict[str, Callable[[], Loop]] = {
        "DeepSpeed ZeRO 1, compiled": partial(Loop, recipe(compiled), world),
        "plain PyTorch, compiled": partial(Loop, recipe(compiled), world, PlainEngine),
        "DeepSpeed ZeRO 0, compiled": partial(Loop, recipe(compiled, "engine.zero_stage=0"), world),
        "DeepSpeed ZeRO 2, compiled": partial(Loop, recipe(compiled, "engine.zero_stage=2"), world),
    }
    if eager:
        contestants |= {
            "DeepSpeed ZeRO 1, eager": partial(Loop, recipe(f"engine.compile={scale.eager}"), world),
            "plain PyTorch, eager": partial(Loop, recipe(f"engine.compile={scale.eager}"), world, PlainEngine),
        }
    loops, failures = _those_that_run(contestants)
    return step(loops, scale.times, rounds=scale.rounds) + failures


def checkpointing(scale: Scale, shards: Path) -> list[Figure]:
    """ViT-L with its activations kept and computed again: speed, and the memory that a step takes at most."""
    world = join()
    loops, memory = {}, []
    for name, again in (("activations kept", "false"), ("activations computed again", "true")):
        recipe = scale.large(f"engine.compile={scale.compiled}", f"engine.activation_checkpointing={again}")
        before = _allocated(scale)
        loops[name] = Loop(recipe, world)
        loops[name].steps(2, resident(recipe, world))
        memory.append(Figure(f"memory, {name}", "GiB", (_allocated(scale, most=True) - before) / 2**30))
    return [step(loops, scale.times, rounds=scale.rounds)[0], *memory]


def _allocated(scale: Scale, most: bool = False) -> int:
    """Bytes on the device: now, or at most since this was asked the last time."""
    if scale.dry:
        return 0
    if most:
        return torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def compile_modes(scale: Scale, shards: Path) -> list[Figure]:
    """ViT-B, compiled by default and with the compiler trying more; the last also in CUDA graphs."""
    recipe, world = scale.base(f"engine.compile={scale.compiled}"), join()
    modes = (None, "max-autotune-no-cudagraphs", "max-autotune")
    loops, failures = _those_that_run({f"mode {mode}": partial(Loop, recipe, world, mode=mode) for mode in modes})
    return [step(loops, scale.times, rounds=scale.rounds)[0], *failures]


def _those_that_run(contestants: Mapping[str, Callable[[], Loop]]) -> tuple[dict[str, Loop], list[Figure]]:
    """Those that can take two steps, which also compiles them, and a figure with the error for each that cannot."""
    loops, failures = {}, []
    for name, make in contestants.items():
        try:
            loop = make()
            loop.steps(2, resident(loop.recipe, loop.world))
            loops[name] = loop
        except RuntimeError as error:
            if not loops:  # the one that all others are compared with
                raise
            failures.append(Figure(f"{name} does not run", "images/s", 0.0, settings={"error": str(error)[-500:]}))
    return loops, failures


def from_shards(scale: Scale, shards: Path) -> list[Figure]:
    """ViT-B fed by the loader, without and with the JPEG hardware."""
    world, figures = join(), []
    for load in (0, 1):
        data = [f"data.shards={shards}", f"data.read_threads={THREADS}", f"data.decode_threads={THREADS}"]
        recipe = scale.base(*data, f"data.hw_decoder_load={load}", f"engine.compile={scale.compiled}")
        figures += end_to_end(recipe, world, scale.times, scale.rounds, f"hw_decoder_load={load}")
    return figures


def snapshot(scale: Scale, shards: Path) -> list[Figure]:
    """How long a step stops for a checkpoint of ViT-L, beside a bare copy of as many bytes into pinned memory."""
    world = join()
    loop = Loop(scale.large(f"engine.compile={scale.eager}"), world)
    loop.steps(1, resident(loop.recipe, world))
    assert isinstance(loop.engine, Engine)
    stops, writes = [], []
    shapes = captured_shapes(loop.engine, world)
    with tempfile.TemporaryDirectory() as folder, Saver(Path(folder), world, shapes, keep=1, keep_every=None) as saver:
        for save in range(3):
            synchronise(scale.device)
            begin = time.perf_counter()
            saver.start(capture(loop.engine, world), Facts(save, counters(loop.engine), {}, {}))
            stops.append(time.perf_counter() - begin)
            if problem := saver.wait():
                raise RuntimeError(problem)
            writes.append(time.perf_counter() - begin - stops[-1])
    size = STATE_BYTES * loop.parameters
    piece = torch.empty(min(size, 2**28), dtype=torch.uint8, device=scale.device)
    pinned = torch.empty(piece.shape, dtype=torch.uint8, pin_memory=not scale.dry)

    def copy() -> int:
        pinned.copy_(piece)
        return piece.nbytes

    bare = size / race({"copy": copy}, scale.rounds)["copy"]
    name = f"checkpoint of {size / 1e9:.2f} GB, {title(loop.recipe, world)}"
    return [
        Figure(f"{name}: training stops", "s", min(stops[1:]), limits={"a bare copy": bare}),
        Figure("the same for the first", "s", stops[0]),
        Figure("written meanwhile, with checksums and fsync", "s", min(writes)),
    ]
