"""Measure the training step fed by the real loader, beside the same step on resident data."""

import statistics
import time
from collections.abc import Iterator

from benchmarks.figures import Figure
from benchmarks.racing import ROUNDS
from benchmarks.step import Loop, Pixels, inputs_of, resident, settings_of, title
from pipeline.data.batch import DEPTH, Batch
from pipeline.data.loader import AHEAD
from pipeline.report.pace import Clock
from pipeline.train.setup import open_data


def end_to_end(loop: Loop, times: int, rounds: int = ROUNDS, how: str = "") -> list[Figure]:
    """Measure both in turns, with `times` steps per round, and the share of time that the loop waits for the loader.

    `how` is appended to the names.
    """
    recipe, world = loop.recipe, loop.world
    data = open_data(recipe, world)
    still = resident(recipe, world)
    ready = AHEAD + DEPTH  # batches that are ready before a round; they are taken before the clock starts
    drained = -(-ready // loop.micro_batches)
    fed = data.batches(0, (rounds + 1) * (drained + times) * loop.micro_batches)
    rates: dict[str, list[float]] = {"from shards": [], "resident": []}
    waits = []
    loop.steps(times, still)  # compiles
    for _ in range(rounds + 1):
        loop.steps(drained, pixels(fed, Clock(world.device)))
        clock = Clock(world.device)
        for name, batches in (("from shards", pixels(fed, clock)), ("resident", still)):
            begin = time.perf_counter()
            images = loop.steps(times, batches)
            rates[name].append(images / (time.perf_counter() - begin))
            if name == "from shards":
                waits.append(clock.wait / clock.elapsed)
    data.close()
    median = {name: statistics.median(values[1:]) for name, values in rates.items()}  # the first to warm up
    return [
        Figure(
            f"training step from shards, {title(recipe, world)}{how and ', ' + how}",
            f"{inputs_of(recipe)}/s",
            median["from shards"],
            limits={"resident data": median["resident"]},
            settings=settings_of(recipe, world) | {"data": "shards"},
        ),
        Figure(f"waiting for data{how and ', ' + how}", "share of time", statistics.median(waits[1:])),
    ]


def pixels(batches: Iterator[Batch], clock: Clock) -> Iterator[Pixels]:
    """Convert the batches of a loader to those of a `Loop`."""
    while True:
        with clock.waiting():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch.inputs, batch.keys
