"""Training batches of data sets with a manifest: every sample exactly once per epoch, also across restarts."""

from collections.abc import Iterator, Sequence
from itertools import islice

from pipeline.data.batch import Batch
from pipeline.data.cache.node import NodeCache
from pipeline.data.cache.schedule import Schedule
from pipeline.data.data_sets import DataSets
from pipeline.data.loader import Loader
from pipeline.data.request import Medium, training_requests
from pipeline.data.settings import Data
from pipeline.data.training_data import Part
from shards.manifest import Manifest
from shards.storage import Traffic


class ExactData:
    """One rank's part of a run's batches.

    Args:
        data: the settings.
        part: this rank's part of the batches.

    Attributes:
        manifest: that of the data set, or of all mixed ones.
        samples: samples per epoch.
        media: the media of the samples.

    Raises:
        ShardError: a data set does not exist.
        DataError: data sets cannot be mixed, the cache is too small, or the GPU cannot decode.
    """

    def __init__(self, data: Data, part: Part) -> None:
        self._data, self._part = data, part
        self._sets = DataSets(data)
        self.manifest, self.identity = self._sets.manifest, self._sets.identity
        self.media = self.manifest.media
        samples = part.batch_size // data.repeats
        self._order = self._sets.order(part.seed, samples)
        self.samples = self._order.samples
        remote = self.manifest.remote
        cache, traffic = None, Traffic()
        if data.cache and remote:
            order = self._sets.order(part.seed, samples)  # not shared: the cache has threads, and plans cache epochs
            first_of_node = part.rank - part.local_rank
            schedule = Schedule(order, samples, first_of_node, part.local_size, part.world_size)
            cache = NodeCache(self.manifest, data.cache, data.cache_size, schedule, traffic=traffic)
        no_cache = "shards are remote and data.cache is not set: every sample is a separate request, in every epoch"
        self.notes = self._sets.notes + ([no_cache] if remote and not cache else [])
        self._loader = Loader(
            self.manifest,
            data,
            part.micro_batch,
            part.device,
            cache,
            traffic,
            data.repeats,
            self._sets,
            self._sets.of_both_media,
        )
        self.notes += self._loader.notes

    def of_medium(self, medium: Medium) -> Manifest:
        """See `ListedData`."""
        return self._sets.of_medium(medium)

    def batches(self, first_step: int, micro_batches: int, medium: Medium | None = None) -> Iterator[Batch]:
        """See `TrainingData`. Raises DataError as `Loader.batches`."""
        requests = training_requests(
            self._order,
            self.manifest,
            self._data,
            first_step=first_step,
            batch_size=self._part.batch_size,
            micro_batch=self._part.micro_batch,
            rank=self._part.rank,
            world_size=self._part.world_size,
        )
        wanted = (request for request in requests if medium in (None, request.medium))
        return self._loader.batches(islice(wanted, micro_batches))

    def counters(self) -> dict[str, float]:
        """See `Loader.counters`."""
        return self._loader.counters()

    def close(self) -> None:
        """See `Loader.close`."""
        self._loader.close()

    def counts(self, samples: Sequence[int]) -> dict[str, int]:
        """See `DataSets.counts`."""
        return self._sets.counts(samples)

    def names(self, samples: Sequence[int]) -> list[dict[str, str]]:
        """See `DataSets.where`."""
        return self._sets.where(samples)
