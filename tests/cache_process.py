"""One rank's cache in a separate process: `python cache_process.py URL FOLDER LIMIT`.

It starts to read at the first line of stdin and ends with it.
"""

import sys
from pathlib import Path

from pipeline.data.cache.node import NodeCache
from pipeline.data.cache.schedule import Schedule
from pipeline.data.plan import Plan
from shards.manifest import Manifest

BATCH = 16


def schedule(manifest: Manifest) -> Schedule:
    return Schedule(Plan(manifest.counts, seed=0, lanes=4, block=8), BATCH, first_rank=0, ranks=1, world_size=1)


if __name__ == "__main__":
    manifest = Manifest.load(sys.argv[1])
    cache = NodeCache(manifest, Path(sys.argv[2]), int(sys.argv[3]), schedule(manifest))
    print("ready", flush=True)
    sys.stdin.readline()
    cache.advance(0)
    sys.stdin.read()  # and then it leaves without closing the cache, as a run that fails does
