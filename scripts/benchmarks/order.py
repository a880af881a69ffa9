"""Measure the sample order at internet scale."""

import random
import time
import tracemalloc

import numpy as np

from benchmarks.figures import Figure
from benchmarks.racing import race
from pipeline.data.cache.schedule import Schedule
from pipeline.data.plan import Plan


def plan() -> list[Figure]:
    """Measure 10^10 samples in 10^6 shards, 4,096 lanes: ids per second in batches of 4,096, memory, opening a step."""
    shards, batch = 10**6, 4096
    across = 10**10 // batch  # the batch that straddles the first epoch's end
    tracemalloc.start()
    Plan(np.full(shards, 10**4), seed=1, lanes=batch).batch(across, batch)
    memory = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()

    begin = time.perf_counter()
    huge = Plan(np.full(shards, 10**4), seed=1, lanes=batch)
    huge.batch(10**6, batch)
    opened = time.perf_counter()
    uses = Schedule(huge, batch, first_rank=0, ranks=8, world_size=batch).uses(1)
    used = time.perf_counter()
    huge.batch(10**6, batch)
    ids = race({"ids": lambda: len(huge.batch(random.randrange(across), batch))})["ids"]
    return [
        Figure("ids in batches of 4,096", "ids/s", ids),
        Figure("memory with the counts and two epochs, at most", "MiB", memory),
        Figure("opening step 1,000,000", "s", opened - begin),
        Figure(f"the {len(uses.shard):,} shards of a node of 8 ranks in an epoch", "s", used - opened),
    ]
