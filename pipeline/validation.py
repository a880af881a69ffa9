"""Validation images, and means over them, for the validations of all tasks."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from pipeline.cluster.phases import Phases
from pipeline.cluster.world import World
from pipeline.data.batch import Batch
from pipeline.data.errors import no_validation_image
from pipeline.data.loader import Loader
from pipeline.data.request import validation_requests
from pipeline.data.settings import Data
from shards.manifest import Manifest


class ValidationImages:
    """The validation images of a run, with fixed crops and keys. All ranks call every method together.

    Args:
        manifest: manifest of the data set, of which the first `data.validation_samples` are used.
        data: crop size, threads, and the limit of bad samples.
        micro_batch: images per batch.
        seed: seed of the keys.
        world, phases: those of the run.
        crop: see `Shapes.centre_boxes`.
        single_frames: see `Loader`.

    Attributes:
        samples: number of samples, each counted once for any number of ranks.
    """

    def __init__(
        self,
        manifest: Manifest,
        data: Data,
        micro_batch: int,
        seed: int,
        world: World,
        phases: Phases,
        crop: float = 1.0,
        single_frames: bool = False,
    ) -> None:
        self._manifest, self._world, self._phases = manifest, world, phases
        self._data, self._micro_batch, self._seed, self._crop = data, micro_batch, seed, crop
        self._loader = Loader(manifest, data, micro_batch, world.device, single_frames=single_frames)
        self.samples = min(data.validation_samples or len(manifest), len(manifest))

    def batches(self) -> Iterator[Batch]:
        """Return this rank's batches; every rank gets equally many."""
        requests = validation_requests(
            self._manifest,
            self._data,
            samples=self.samples,
            micro_batch=self._micro_batch,
            rank=self._world.rank,
            world_size=self._world.size,
            seed=self._seed,
            share=self._crop,
        )
        return self.watched(self._loader.batches(requests))

    def watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Take each batch in its own phase, so that the deadline applies to each."""
        for batch in batches:
            with self._phases("validation"):
                yield batch

    def means(self, sums: Tensor, images: Tensor) -> tuple[list[float], int]:
        """Return means over the images of all ranks, and how many images were bad. Waits for the device.

        Args:
            sums: sums over this rank's good images, float64 (n,).
            images: number of these, float64 ().

        Raises:
            DataError: no image can be used.
        """
        *totals, good = self._world.sum(torch.cat([sums, images[None]])).tolist()
        if not good:
            raise no_validation_image(self._manifest.root)
        return [total / good for total in totals], self.samples - int(good)
