"""Requests -> batches: reading runs ahead of decoding, and decoding ahead of whoever trains.

plan -> request (ids, crops, flips) -> reader (bytes) -> decoder (pixels on the device) -> batch
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import Data
from pipeline.data.augment import (
    Boxes,
    centre_crops,
    mask_keys,
    random_flips,
    random_resized_crops,
    sample_keys,
)
from pipeline.data.decode import Decoder
from pipeline.data.plan import Plan
from pipeline.data.reader import DataError, Reader
from shards.manifest import Manifest


@dataclass(frozen=True)
class Request:
    """A micro-batch of one rank before it is read. All arrays are (n,), boxes (n, 4)."""

    step: int
    ids: NDArray[np.int64]
    boxes: Boxes
    flips: NDArray[np.int32]
    mask_keys: NDArray[np.int64]
    weights: NDArray[np.float32]  # 0 for the padding of a last validation batch


@dataclass(frozen=True)
class Batch:
    """A micro-batch of one rank on its device."""

    request: Request
    images: Tensor  # uint8 (n, 3, size, size), channels-last
    mask_keys: Tensor  # int64 (n,)
    weights: Tensor  # float32 (n,)


def training_requests(
    plan: Plan,
    manifest: Manifest,
    data: Data,
    *,
    first_step: int,
    batch_size: int,
    micro_batch: int,
    rank: int,
    world_size: int,
) -> Iterator[Request]:
    """This rank's micro-batches from `first_step` on, without an end: its contiguous part of every global batch."""
    part = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
    for step in count(first_step):
        mine = plan.positions(step, batch_size)[part]
        all_ids, epochs = plan.ids(mine), plan.epochs(mine)
        for start in range(0, len(mine), micro_batch):
            here = slice(start, start + micro_batch)
            ids = all_ids[here]
            keys = sample_keys(plan.seed, epochs[here], ids)
            boxes = random_resized_crops(
                keys, manifest.height[ids], manifest.width[ids], data.crop_scale, data.crop_ratio
            )
            flips = random_flips(keys) if data.flip else np.zeros(len(ids), dtype=np.int32)
            yield Request(step, ids, boxes, flips, mask_keys(keys), np.ones(len(ids), dtype=np.float32))


def validation_requests(
    manifest: Manifest, *, samples: int, micro_batch: int, rank: int, world_size: int, seed: int
) -> Iterator[Request]:
    """The first `samples` samples once over all ranks, centre-cropped, always under the same masks.

    Every rank gets the same number of equal micro-batches, since ranks have to enter collectives together; what
    that takes beyond `samples` is repeated with weight 0.
    """
    samples = min(samples, len(manifest))
    for step, first in enumerate(range(0, samples, micro_batch * world_size)):
        index = first + rank * micro_batch + np.arange(micro_batch, dtype=np.int64)
        ids = index % samples
        keys = sample_keys(seed, np.zeros_like(ids), ids)
        boxes = centre_crops(manifest.height[ids], manifest.width[ids])
        weights = (index < samples).astype(np.float32)
        yield Request(step, ids, boxes, np.zeros(micro_batch, dtype=np.int32), mask_keys(keys), weights)


class Loader:
    """Reads and decodes one data set for one rank.

    Args:
        manifest: the data set.
        data: crop size and threads.
        micro_batch: images in a batch.
        device: where batches go.
    """

    AHEAD = 4  # batches being read beyond those being decoded

    def __init__(self, manifest: Manifest, data: Data, micro_batch: int, device: torch.device) -> None:
        self._device = device
        self._reader = Reader(manifest, data.read_threads)
        gpu = device.index if device.type == "cuda" else None
        self._decoder = Decoder(
            micro_batch,
            data.image_size,
            gpu,
            threads=data.decode_threads,
            hw_decoder_load=data.hw_decoder_load,
        )

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Batches in the order of the requests. Finish one iteration before you start another.

        Raises:
            DataError: a sample cannot be read or decoded.
        """
        requests = iter(requests)
        reading = deque((request, self._reader.submit(request.ids)) for request in islice(requests, self.AHEAD))
        decoding: deque[Request] = deque()
        while reading or decoding:
            while reading and len(decoding) < self._decoder.depth:
                request, encoded = reading.popleft()
                self._decoder.feed(encoded.result(), request.boxes, request.flips)
                decoding.append(request)
                reading.extend((request, self._reader.submit(request.ids)) for request in islice(requests, 1))
            request = decoding.popleft()
            try:
                images = self._decoder.take()
            except DataError as error:
                raise DataError(f"step {request.step}, samples {request.ids.tolist()}: {error}") from error
            yield Batch(
                request,
                images,
                torch.from_numpy(request.mask_keys).to(self._device, non_blocking=True),
                torch.from_numpy(request.weights).to(self._device, non_blocking=True),
            )
