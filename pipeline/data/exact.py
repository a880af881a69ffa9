"""Training batches of a data set with a manifest: every sample once an epoch, exactly, whatever happens."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

from pipeline.data.batch import Batch
from pipeline.data.cache.node import NodeCache
from pipeline.data.cache.schedule import Schedule
from pipeline.data.loader import Loader
from pipeline.data.plan import PLAN_VERSION, Plan
from pipeline.data.request import training_requests
from pipeline.data.settings import Data
from pipeline.data.training_data import Part
from shards.files import ShardError
from shards.manifest import Manifest
from shards.storage import Traffic

_NAMES = 65_536  # rows of the manifest read at once to name a sample: a row group
_PATIENCE = 20.0  # seconds that a name is worth waiting for a store


class ExactData:
    """One rank's part of the batches of a run.

    Args:
        data: what is read, and how.
        part: of this rank.

    Attributes:
        manifest: of the data set.
        samples: of an epoch.

    Raises:
        ShardError: no such data set.
        DataError: the cache is too small, or the GPU cannot decode.
    """

    def __init__(self, data: Data, part: Part) -> None:
        self._data, self._part = data, part
        self.manifest = Manifest.load(data.shards)
        self._plan = self._new_plan()
        self.samples = self._plan.samples
        self.identity: dict[str, Any] = {
            "data.shards (manifest)": self.manifest.identity,
            "plan version": PLAN_VERSION,
        }
        remote = self.manifest.remote
        cache, traffic = None, Traffic()
        if data.cache and remote:
            plan = self._new_plan()  # the cache has threads of its own, and plans remember epochs
            first_of_node = part.rank - part.local_rank
            samples = part.batch_size // data.repeats
            schedule = Schedule(plan, samples, first_of_node, part.local_size, part.world_size)
            cache = NodeCache(self.manifest, data.cache, data.cache_size, schedule, traffic=traffic)
        no_cache = "shards are remote and data.cache is not set: every sample is a request of its own, in every epoch"
        self.notes = [no_cache] if remote and not cache else []
        self._names = lru_cache(maxsize=4)(self._read_names)
        self._loader = Loader(self.manifest, data, part.micro_batch, part.device, cache, traffic, data.repeats)
        self.notes += self._loader.notes

    def _new_plan(self) -> Plan:
        return Plan(self.manifest.counts, self._part.seed, self._data.lanes, self._data.block)

    def batches(self, first_step: int, micro_batches: int) -> Iterator[Batch]:
        """So many of this rank's micro-batches, from the first of a step on. Raises DataError as `Loader.batches`."""
        requests = training_requests(
            self._plan,
            self.manifest,
            self._data,
            first_step=first_step,
            batch_size=self._part.batch_size,
            micro_batch=self._part.micro_batch,
            rank=self._part.rank,
            world_size=self._part.world_size,
        )
        return self._loader.batches(islice(requests, micro_batches))

    def counters(self) -> dict[str, float]:
        """See `Loader.counters`."""
        return self._loader.counters()

    def close(self) -> None:
        """See `Loader.close`."""
        self._loader.close()

    def names(self, samples: Sequence[int]) -> list[dict[str, str]]:
        """What a person looks for when samples are bad: key, path in the source, and shard.

        Where the manifest cannot be read any more, it is the shard alone: a bad sample is worth no more than that.
        """
        named, readable = [], True
        for sample in samples:
            names = {"shard": self.manifest.shard_names[self.manifest.shard[sample]]}
            chunk, row = divmod(sample, _NAMES)
            try:
                if readable:
                    key, path = self._names(chunk)[row]
                    names = {"key": key, "path": path} | names
            except ShardError:
                readable = False  # a store that is out of reach is waited for once
            named.append(names)
        return named

    def _read_names(self, chunk: int) -> list[tuple[str, str]]:
        first = chunk * _NAMES
        return self.manifest.names(first, min(first + _NAMES, len(self.manifest)), _PATIENCE)
