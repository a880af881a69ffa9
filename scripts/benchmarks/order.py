"""The sample order at internet scale."""

import argparse
import random
import time
import tracemalloc

import numpy as np

from benchmarks.racing import Rates, race
from pipeline.data.plan import Plan
from pipeline.data.schedule import Schedule


def plan(arguments: argparse.Namespace) -> Rates:
    """Ids a second in batches of 4,096 of 10^10 samples in 10^6 shards, 4,096 lanes; memory, and opening a step."""
    shards, batch = 10**6, 4096
    across = 10**10 // batch  # the batch that straddles the first epoch's end
    tracemalloc.start()
    Plan(np.full(shards, 10**4), seed=1, lanes=batch).batch(across, batch)
    print(f"memory with the counts and two epochs: {tracemalloc.get_traced_memory()[1] / 2**20:.0f} MiB at most")
    tracemalloc.stop()

    begin = time.perf_counter()
    huge = Plan(np.full(shards, 10**4), seed=1, lanes=batch)
    huge.batch(10**6, batch)
    opened = time.perf_counter()
    uses = Schedule(huge, batch, first_rank=0, ranks=8, world_size=batch).uses(1)
    print(f"opening step 1,000,000: {opened - begin:.2f} s")
    print(f"the {len(uses.shard):,} shards of a node of 8 ranks in an epoch: {time.perf_counter() - opened:.2f} s")
    huge.batch(10**6, batch)
    return race({"batch of 4,096 ids": lambda: len(huge.batch(random.randrange(across), batch))})
