"""What a rank asks for: the samples of its micro-batches, with their crops and flips drawn."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from pipeline.data.augment import Boxes, centre_crops, mask_keys, random_flips, random_resized_crops, sample_keys
from pipeline.data.plan import Plan
from pipeline.data.settings import Data
from shards.manifest import Manifest


@dataclass(frozen=True)
class Request:
    """A micro-batch of one rank before it is read. All arrays are (n,), boxes (n, 4)."""

    step: int
    ids: NDArray[np.int64]
    boxes: Boxes
    flips: NDArray[np.int32]
    keys: NDArray[np.int64]  # seeds of what is drawn for each sample later, such as its mask
    weights: NDArray[np.float32]  # 0 for the padding of a last validation batch


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
            yield training_request(step, ids, keys, manifest.height[ids], manifest.width[ids], data)


def training_request(
    step: int,
    ids: NDArray[np.int64],
    keys: NDArray[np.int64],
    heights: NDArray[np.int32],
    widths: NDArray[np.int32],
    data: Data,
) -> Request:
    """Random crops, flips and masks for n samples of given keys and sizes, (n,) each."""
    boxes = random_resized_crops(keys, heights, widths, data.crop_scale, data.crop_ratio)
    flips = random_flips(keys) if data.flip else np.zeros(len(ids), dtype=np.int32)
    return Request(step, ids, boxes, flips, mask_keys(keys), np.ones(len(ids), dtype=np.float32))


def validation_requests(
    manifest: Manifest, *, samples: int, micro_batch: int, rank: int, world_size: int, seed: int, share: float = 1.0
) -> Iterator[Request]:
    """The first `samples` samples once over all ranks, always under the same masks: centres of `share` of their sides.

    Every rank gets the same number of equal micro-batches, since ranks have to enter collectives together; what
    that takes beyond `samples` is repeated with weight 0.
    """
    samples = min(samples, len(manifest))
    for step, first in enumerate(range(0, samples, micro_batch * world_size)):
        index = first + rank * micro_batch + np.arange(micro_batch, dtype=np.int64)
        ids = index % samples
        keys = sample_keys(seed, np.zeros_like(ids), ids)
        boxes = centre_crops(manifest.height[ids], manifest.width[ids], share=share)
        weights = (index < samples).astype(np.float32)
        yield Request(step, ids, boxes, np.zeros(micro_batch, dtype=np.int32), mask_keys(keys), weights)


def centre_requests(manifest: Manifest, first: int, last: int, micro_batch: int, share: float) -> Iterator[Request]:
    """The samples `first` to `last` - 1 in order, each once: centre squares of `share` of the short side."""
    for step, start in enumerate(range(first, last, micro_batch)):
        ids = np.arange(start, min(start + micro_batch, last), dtype=np.int64)
        yield centre_request(manifest, ids, share, step)


def centre_request(manifest: Manifest, ids: NDArray[np.int64], share: float, step: int = 0) -> Request:
    """Any samples, (n,), so cropped; nothing is masked."""
    boxes = centre_crops(manifest.height[ids], manifest.width[ids], share=share)
    nothing = np.zeros(len(ids), dtype=np.int64)
    return Request(step, ids, boxes, nothing.astype(np.int32), nothing, np.ones(len(ids), dtype=np.float32))
