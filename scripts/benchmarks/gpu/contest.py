"""Compare training loops: each is measured as soon as it runs, then all in turns."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from benchmarks.figures import Figure
from benchmarks.gpu.results import Bench, Failure, LeftOut, Result
from benchmarks.hardware import matrix_product
from benchmarks.racing import Rates, compare, race
from benchmarks.step import Loop, inputs_of, resident, settings_of, title
from pipeline.peaks import peak
from pipeline.train.engine import DTYPES


@dataclass(frozen=True)
class Contestant:
    """A training loop that is built later.

    Attributes:
        name: a name for people.
        seconds: estimated time to build, compile and measure it.
        make: builds it.
    """

    name: str
    seconds: float
    make: Callable[[], Loop]


def contest(bench: Bench, contestants: Sequence[Contestant], loops: dict[str, Loop]) -> Iterator[Result]:
    """Measure rate, share of the peak and memory of each, and the losses of all after equally many steps.

    A figure is repeated in every round, more exactly: the last one counts. A contestant that cannot run affects only
    itself, unless it is the first, with which all others are compared.

    Args:
        bench: sizes and time.
        contestants: loops of one model and batch; the first is ours.
        loops: filled with the loops that run, by name.
    """
    scale, rates, memory, limits = bench.scale, dict[str, list[float]](), Rates(), Rates()
    for contestant in contestants:
        entered = yield from _enter(bench, contestant)
        if entered:
            loops[contestant.name], memory[contestant.name], rate = entered
            rates[contestant.name] = [rate]
            limits = limits or _limits(loops[contestant.name], scale.rounds)
            yield from _figures(loops, rates, limits, memory)
        elif not loops:
            return
    if scale.dry:
        yield LeftOut(f"peak memory and share of the peak, {', '.join(loops)}", "there is no GPU")
    for nth in range(scale.rounds):
        begin = time.monotonic()
        for name, loop in loops.items():
            rates[name].append(_rate(loop, scale.times))
        yield from _figures(loops, rates, limits, memory)
        if late := bench.too_late(f"further rounds than {nth + 1}", 1.5 * (time.monotonic() - begin)):
            yield late
            break
    ours = next(iter(loops.values()))
    losses = {name: float(loop.loss) for name, loop in loops.items()}
    yield compare(f"loss after equally many steps, {title(ours.recipe, ours.world)}", "", losses)


def _enter(bench: Bench, contestant: Contestant) -> Generator[Result, None, tuple[Loop, float, float] | None]:
    """Build and compile a loop; return it, its peak memory in GiB and its inputs/s, or None if it cannot run."""
    if late := bench.too_late(contestant.name, contestant.seconds):
        yield late
        return None
    try:
        before = 0 if bench.scale.dry else torch.cuda.memory_allocated()
        loop = contestant.make()
        batches, most = resident(loop.recipe, loop.world), 0
        loop.steps(2, batches)  # which compile it
        if not bench.scale.dry:
            torch.cuda.reset_peak_memory_stats()
        rate = _rate(loop, bench.scale.times)
        if not bench.scale.dry:
            most = torch.cuda.max_memory_allocated() - before
        return loop, most / 2**30, rate
    except Exception as error:  # the compilers have their own error classes
        yield Failure(contestant.name, repr(error))
        return None


def _rate(loop: Loop, times: int) -> float:
    begin = time.perf_counter()
    images = loop.steps(times, resident(loop.recipe, loop.world))
    return images / (time.perf_counter() - begin)


def _limits(loop: Loop, rounds: int) -> Rates:
    """Return the limits of the device in inputs/s: by a timed matrix product, and by its data sheet."""
    precision = loop.recipe.engine.precision
    product = matrix_product(loop.world.device, DTYPES[precision], times=3)
    name = f"a product of matrices, {precision}"
    limits = {name: race({name: product}, rounds)[name] / loop.flops}
    if (card := peak()) and precision != "fp32":
        limits[f"{card.tflops:g} TFLOP/s, the peak of an {card.name}"] = card.tflops * 1e12 / loop.flops
    return limits


def _figures(
    loops: Mapping[str, Loop], rates: Mapping[str, list[float]], limits: Rates, memory: Rates
) -> Iterator[Figure]:
    ours = next(iter(loops.values()))
    what, settings = title(ours.recipe, ours.world), settings_of(ours.recipe, ours.world)
    medians = {name: median(rates[name]) for name in loops}
    inputs = inputs_of(ours.recipe)
    yield compare(f"training step, {what}", f"{inputs}/s", medians | limits, limits, settings)
    card = peak()
    if card and ours.recipe.engine.precision != "fp32":
        share = ours.flops / (card.tflops * 1e12)
        name = f"MFU of {card.tflops:g} TFLOP/s, {ours.flops / 1e9:.4g} GFLOP for each of the {inputs}, {what}"
        yield compare(name, "share of the peak", {name: rate * share for name, rate in medians.items()})
    if any(memory.values()):
        yield compare(f"peak memory of a step, {what}", "GiB", memory)
