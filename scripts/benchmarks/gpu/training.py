"""Items 5, 6, 8, 9, 13 and 14: measure rates of training, waits for data, and the cost of a save."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.end_to_end import end_to_end, pixels
from benchmarks.figures import Figure
from benchmarks.gpu.contest import Contestant, contest
from benchmarks.gpu.results import Bench, Check, LeftOut, Result
from benchmarks.gpu.traces import traced
from benchmarks.gpu.videos import videos_of
from benchmarks.hardware import synchronise
from benchmarks.plain import PlainEngine
from benchmarks.racing import race
from benchmarks.step import Loop, resident, title
from pipeline.checkpoints.checkpoint import Facts
from pipeline.checkpoints.saver import Saver
from pipeline.cluster.world import join
from pipeline.config import Recipe
from pipeline.estimate import Size, checkpoint_bytes
from pipeline.report.pace import Clock
from pipeline.train.engine import Engine
from pipeline.train.setup import open_data
from pipeline.train.state import capture, captured_shapes, counters

THREADS = 8  # threads of readers and of decoders
OURS, PLAIN = "ours, compiled", "plain PyTorch, compiled"


def base(bench: Bench) -> Iterator[Result]:
    """Measure ViT-B: ours and plain PyTorch, compiled, and ours eager."""
    yield from _side_by_side(bench, bench.scale.base, 60, 15)


def mvit(bench: Bench) -> Iterator[Result]:
    """Measure MViTv2-S: ours and plain PyTorch, compiled, and ours eager."""
    yield from _side_by_side(bench, bench.scale.mvit, 100, 25)


def tubelets(bench: Bench) -> Iterator[Result]:
    """Measure ViT-B on tubelets: ours and plain PyTorch, compiled, and ours eager."""
    yield from _side_by_side(bench, bench.scale.tubelets, 60, 20)


def _side_by_side(bench: Bench, recipe: Callable[[str], Recipe], first: float, further: float) -> Iterator[Result]:
    """Measure a model in three ways: the first, which compiles, takes about `first` seconds, others `further`."""
    scale, world, loops = bench.scale, join(), dict[str, Loop]()
    compiled, eager = (recipe(f"engine.compile={how}") for how in (scale.compiled, scale.eager))
    yield from contest(
        bench,
        [
            Contestant(OURS, first, partial(Loop, compiled, world)),
            Contestant(PLAIN, further, partial(Loop, compiled, world, PlainEngine)),
            Contestant("ours, eager", further, partial(Loop, eager, world)),
        ],
        loops,
    )
    if OURS in loops:
        yield from _idle(bench, loops[OURS])


def _idle(bench: Bench, loop: Loop) -> Iterator[Result]:
    batches = resident(loop.recipe, loop.world)
    idle = traced(lambda: loop.step(batches), 3, loop.world.device).idle()
    name = f"the GPU idles in three traced steps on resident data, {title(loop.recipe, loop.world)}"
    yield LeftOut(name, "there is no GPU") if idle is None else Figure(name, "share of time", idle)


def from_shards(bench: Bench, load: int) -> Iterator[Result]:
    """Measure ViT-B fed by the loader, and check that its pixels remain right while the GPU is busy."""
    recipe = partial(bench.scale.base, f"data.hw_decoder_load={load}")
    yield from _fed(bench, recipe, bench.shards, f"hw_decoder_load={load}")


def mvit_from_shards(bench: Bench) -> Iterator[Result]:
    """Measure MViTv2-S fed by the loader, and check that its pixels remain right while the GPU is busy."""
    yield from _fed(bench, bench.scale.mvit, videos_of(bench), "clips of videos")


def _fed(bench: Bench, recipe: Callable[..., Recipe], shards: Path, how: str) -> Iterator[Result]:
    scale = bench.scale
    if late := bench.too_late(f"training from shards, {how}", 35):
        yield late
        return
    threads = THREADS if not scale.dry else 1
    data = [f"data.shards={shards}", f"data.read_threads={threads}", f"data.decode_threads={threads}"]
    loop = Loop(recipe(*data, f"engine.compile={scale.compiled}"), join())
    yield from end_to_end(loop, scale.times, scale.rounds, how)
    with closing(open_data(loop.recipe, loop.world)) as images:
        fed = pixels(images.batches(0, 5), Clock(scale.device))
        loop.steps(2, fed)
        waits = traced(lambda: loop.step(fed), 3, scale.device).waits()
    yield Figure(f"calls of a step from shards that wait for the device, {how}", "", len(waits) / 3)
    yield from _pixels_under_load(bench, loop, how)


def _pixels_under_load(bench: Bench, loop: Loop, how: str) -> Iterator[Result]:
    """Compare batches decoded while the GPU trains with the same batches decoded on an idle GPU."""
    count, device = 2 if bench.scale.dry else 16, bench.scale.device
    quiet, busy = [], []
    with closing(open_data(loop.recipe, loop.world)) as data:
        for images, _ in pixels(data.batches(0, count), Clock(device)):
            quiet.append(_hashes(images))
            synchronise(device)
        for images, keys in pixels(data.batches(0, count), Clock(device)):
            loop.step(iter([(images, keys)]))
            busy.append(_hashes(images))  # after the step, in which the decoder might have overwritten them
    wrong = sum(int((a != b).sum()) for a, b in zip(quiet, busy, strict=True))
    numbers = {"images": sum(map(len, quiet)), "wrong": wrong}
    yield Check(f"pixels under load equal quiet ones, {how}", wrong == 0 and len(busy) == count, numbers)


def _hashes(images: Tensor) -> Tensor:
    """Hash each of uint8 (B, 3, ..., H, W) on the device, without waiting for it: int64 (B,)."""
    flat = images.flatten(1).long()
    factors = torch.arange(flat.shape[1], device=images.device) * 2654435761 + 1  # Knuth's multiplicative hash
    return (flat * factors).sum(1)


def large(bench: Bench) -> Iterator[Result]:
    """Measure ViT-L: ours and plain PyTorch, compiled, and a save."""
    recipe, world, loops = bench.scale.large(f"engine.compile={bench.scale.compiled}"), join(), dict[str, Loop]()
    contestants = [
        Contestant(OURS, 70, partial(Loop, recipe, world)),
        Contestant(PLAIN, 20, partial(Loop, recipe, world, PlainEngine)),
    ]
    yield from contest(bench, contestants, loops)
    loops.pop(PLAIN, None)
    if late := bench.too_late("stall of a save", 20):
        yield late
    elif OURS in loops:
        yield from _saves(bench, loops[OURS])


def _saves(bench: Bench, loop: Loop) -> Iterator[Result]:
    """Measure how long training stops for a save, beside a bare copy of as many bytes to pinned memory."""
    scale, world = bench.scale, loop.world
    assert isinstance(loop.engine, Engine)
    stops, writes, shapes = [], [], captured_shapes(loop.engine, world)
    with (
        tempfile.TemporaryDirectory() as folder,
        Saver(Path(folder), world, shapes, keep=1, keep_every=None) as saver,
    ):
        for save in range(3):
            synchronise(scale.device)
            begin = time.perf_counter()
            saver.start(capture(loop.engine, world), Facts(save, counters(loop.engine), {}, {}))
            stops.append(time.perf_counter() - begin)
            if problem := saver.wait():
                raise RuntimeError(problem)
            writes.append(time.perf_counter() - begin - stops[-1])
    size = checkpoint_bytes(Size(loop.parameters, 0), loop.recipe.optim.name)
    piece = torch.empty(min(size, 2**28), dtype=torch.uint8, device=scale.device)
    pinned = torch.empty(piece.shape, dtype=torch.uint8, pin_memory=not scale.dry)

    def copy() -> int:
        pinned.copy_(piece)
        return piece.nbytes

    bare = size / race({"copy": copy}, scale.rounds)["copy"]
    name = f"checkpoint of {size / 1e9:.2f} GB, {title(loop.recipe, loop.world)}"
    yield Figure(f"{name}: training stops", "s", min(stops[1:]), limits={"a bare copy": bare})
    yield Figure(f"{name}: it stops for the first, which allocates pinned memory", "s", stops[0])
    yield Figure(f"{name}: written meanwhile, with checksums and fsync", "s", min(writes))


def stages(bench: Bench) -> Iterator[Result]:
    """Measure ViT-B at ZeRO 0 to 2."""
    scale, world, compiled = bench.scale, join(), f"engine.compile={bench.scale.compiled}"
    recipes = {stage: scale.base(compiled, f"engine.zero_stage={stage}") for stage in (1, 0, 2)}
    contestants = [
        Contestant(f"ZeRO {stage}", 40 if stage == 1 else 15, partial(Loop, recipe, world))
        for stage, recipe in recipes.items()
    ]
    yield from contest(bench, contestants, {})


def recomputing(bench: Bench) -> Iterator[Result]:
    """Measure ViT-L with its activations kept and recomputed."""
    scale, world, compiled = bench.scale, join(), f"engine.compile={bench.scale.compiled}"
    recipes = {
        f"activations {how}": scale.large(compiled, f"engine.activation_checkpointing={again}")
        for how, again in (("kept", "false"), ("computed again", "true"))
    }
    contestants = [Contestant(name, 60, partial(Loop, recipe, world)) for name, recipe in recipes.items()]
    yield from contest(bench, contestants, {})


def modes(bench: Bench) -> Iterator[Result]:
    """Measure ViT-B compiled by default and with more autotuning; the latter also in CUDA graphs."""
    recipe, world = bench.scale.base(f"engine.compile={bench.scale.compiled}"), join()
    contestants = [
        Contestant(f"mode {mode}", 100 if mode else 40, partial(Loop, recipe, world, mode=mode))
        for mode in (None, "max-autotune-no-cudagraphs", "max-autotune")
    ]
    yield from contest(bench, contestants, {})
