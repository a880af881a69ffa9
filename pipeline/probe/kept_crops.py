"""Read and decode centre crops of some samples of a data set once, and keep them in memory."""

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.cluster.world import World
from pipeline.data.labels import Int64s
from pipeline.data.loader import Loader
from pipeline.data.request import centre_request
from pipeline.data.settings import Data
from pipeline.device import to_device
from pipeline.probe.features import at_once
from shards.manifest import Manifest

MOST_KEPT = 2 * 2**30  # bytes of a data set per rank; further samples are read again each time


class KeptCrops:
    """This rank's part of some samples as uint8 crops; for videos, as the clips in their middle.

    Args:
        manifest: the data set.
        ids: the samples of all ranks, ascending, (n,). Each rank takes a contiguous part.
        data: crop size, clips and threads.
        crop: share of the largest centred crop.
        world: the ranks.
        most_kept: most bytes to keep in memory.
    """

    def __init__(
        self, manifest: Manifest, ids: Int64s, data: Data, crop: float, world: World, most_kept: int = MOST_KEPT
    ) -> None:
        self._manifest, self._data, self._world, self._most_kept = manifest, data, world, most_kept
        self._at_once = at_once(data.clip)
        begin, end = (rank * len(ids) // world.size for rank in (world.rank, world.rank + 1))
        self._requests = [
            centre_request(manifest, data, ids[start : min(start + self._at_once, end)], crop, step)
            for step, start in enumerate(range(begin, end, self._at_once))
        ]
        self._kept: list[tuple[Tensor, Tensor]] = []  # of the first requests
        self._bytes = 0

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ids, int64 (n,) on the CPU, and inputs, uint8 (n, ...) on the device, in order, without bad samples.

        Raises:
            DataError: too many samples in a row are bad, or the storage is unreachable.
        """
        for ids, inputs in self._kept:
            yield ids, to_device(inputs, self._world.device)
        if rest := self._requests[len(self._kept) :]:
            loader = Loader(self._manifest, self._data, self._at_once, self._world.device)
            try:
                keeping = True
                for batch in loader.batches(rest):
                    good = batch.weights > 0
                    ids, inputs = torch.from_numpy(batch.request.ids)[good.cpu()], batch.inputs[good]
                    keeping = keeping and self._keep(ids, inputs)
                    yield ids, inputs
            finally:
                loader.close()

    def _keep(self, ids: Tensor, inputs: Tensor) -> bool:
        """Keep a batch in memory if there is space. Return whether there was."""
        if self._bytes + inputs.nbytes > self._most_kept:
            return False
        self._bytes += inputs.nbytes
        self._kept.append((ids, inputs.cpu()))
        return True
