"""Requests for data: the samples of a rank's micro-batches, with their crops, flips and frames."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.data.augment import (
    Boxes,
    centre_crops,
    mask_keys,
    random_flips,
    random_resized_crops,
    repeat_keys,
    sample_keys,
)
from pipeline.data.clips import Frames, Rates, placed_clips, random_clips
from pipeline.data.order import Order
from pipeline.data.settings import Clip, Data
from shards.manifest import Manifest

Medium = Literal["image", "video"]  # of a sample, by the names of `shards.media`


@dataclass(frozen=True)
class Request:
    """A micro-batch of one rank before it is read: m samples of a medium, and the n inputs made of them.

    A sample is read and decoded once. Its n / m inputs are in a row, in the order of the samples.

    Attributes:
        step: the step of the batch.
        ids: the samples, (m,).
        boxes: (n, 4), see `augment`.
        flips: (n,), 1 for inputs to be mirrored.
        keys: (n,), seeds of each input's later randomness, such as its mask.
        weights: (n,), 0 for the padding of a last validation batch.
        frames: (n, T), the frames of the video in the clip; None: the samples are images.
    """

    step: int
    ids: NDArray[np.int64]
    boxes: Boxes
    flips: NDArray[np.int32]
    keys: NDArray[np.int64]
    weights: NDArray[np.float32]
    frames: Frames | None = None

    @property
    def medium(self) -> Medium:
        """Return the medium of the samples."""
        return "image" if self.frames is None else "video"

    @property
    def repeats(self) -> int:
        """The number of inputs per sample."""
        return len(self.keys) // len(self.ids)

    @property
    def input_ids(self) -> NDArray[np.int64]:
        """Return the sample of each input, (n,)."""
        return np.repeat(self.ids, self.repeats)


@dataclass(frozen=True)
class Shapes:
    """The sizes of n samples, in which crops and clips have to fit. All arrays are (n,).

    Attributes:
        heights, widths: in pixels.
        frames, rates: number of frames, and frames per second; None: the samples are images.
    """

    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    frames: Frames | None = None
    rates: Rates | None = None

    @classmethod
    def of(cls, manifest: Manifest, ids: NDArray[np.int64]) -> "Shapes":
        """Return those of samples of one medium, where a data set has two."""
        heights, widths, videos = manifest.height[ids], manifest.width[ids], manifest.video
        if videos is None or not videos.frames[ids].any():
            return cls(heights, widths)
        return cls(heights, widths, videos.frames[ids], videos.rate[ids])

    def random_boxes(self, keys: NDArray[np.int64], data: Data) -> Boxes:
        """Draw crops; see `random_resized_crops`. Their ratios are those of the settings, times that of the inputs."""
        low, high = (ratio * data.size.aspect for ratio in data.crop_ratio)
        return random_resized_crops(keys, self.heights, self.widths, data.crop_scale, (low, high))

    def centre_boxes(self, data: Data, share: float) -> Boxes:
        """Return the largest centred crops with the ratio of the inputs, their sides times `share`."""
        return centre_crops(self.heights, self.widths, (data.size.aspect, data.size.aspect), share)

    def random_frames(self, keys: NDArray[np.int64], clip: Clip | None) -> Frames | None:
        """Draw the frames of a clip of each video; see `random_clips`. None for images."""
        if clip is None or self.frames is None or self.rates is None:
            return None
        return random_clips(keys, self.frames, self.rates, clip)

    def placed_frames(self, clip: Clip | None, place: int = 0, places: int = 1) -> Frames | None:
        """Return the frames of one clip of each video, by default the middle one; see `placed_clips`."""
        if clip is None or self.frames is None or self.rates is None:
            return None
        return placed_clips(self.frames, self.rates, clip, place, places)


def training_requests(
    plan: Order,
    manifest: Manifest,
    data: Data,
    *,
    first_step: int,
    batch_size: int,
    micro_batch: int,
    rank: int,
    world_size: int,
) -> Iterator[Request]:
    """Yield this rank's micro-batches from `first_step` on, without end: its contiguous part of every global batch.

    `batch_size` and `micro_batch` count inputs, so that a step reads `batch_size` / `data.repeats` samples.
    """
    samples, at_once = batch_size // data.repeats, micro_batch // data.repeats
    part = slice(rank * samples // world_size, (rank + 1) * samples // world_size)
    for step in count(first_step):
        mine = plan.positions(step, samples)[part]
        all_ids, epochs = plan.ids(mine), plan.epochs(mine)
        for start in range(0, len(mine), at_once):
            here = slice(start, start + at_once)
            ids = all_ids[here]
            keys = sample_keys(plan.seed, epochs[here], ids)
            yield training_request(step, ids, keys, Shapes.of(manifest, ids.repeat(data.repeats)), data)


def training_request(step: int, ids: NDArray[np.int64], keys: NDArray[np.int64], shapes: Shapes, data: Data) -> Request:
    """Draw crops, flips, frames and masks for m samples with these keys, (m,), and n inputs of these shapes."""
    keys = repeat_keys(keys, data.repeats)
    boxes = shapes.random_boxes(keys, data)
    flips = random_flips(keys) if data.flip else np.zeros(len(keys), dtype=np.int32)
    weights = np.ones(len(keys), dtype=np.float32)
    return Request(step, ids, boxes, flips, mask_keys(keys), weights, shapes.random_frames(keys, data.clip))


def validation_requests(
    manifest: Manifest,
    data: Data,
    *,
    samples: int,
    micro_batch: int,
    rank: int,
    world_size: int,
    seed: int,
    share: float = 1.0,
) -> Iterator[Request]:
    """Yield the first `samples` samples once over all ranks, with fixed masks: see `Shapes.centre_boxes`.

    The clip of a video is that in its middle. Every rank gets the same number of equal micro-batches, since ranks have
    to enter collectives together; to fill them up, samples are repeated with weight 0.
    """
    for step, ids, weights in samples_once(manifest, samples, micro_batch, rank, world_size):
        keys, shapes = sample_keys(seed, np.zeros_like(ids), ids), Shapes.of(manifest, ids)
        boxes = shapes.centre_boxes(data, share)
        flips = np.zeros(micro_batch, dtype=np.int32)
        yield Request(step, ids, boxes, flips, mask_keys(keys), weights, shapes.placed_frames(data.clip))


def samples_once(
    manifest: Manifest, samples: int, micro_batch: int, rank: int, world_size: int
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float32]]]:
    """Yield number, ids and weights of this rank's micro-batches: the first `samples` once, and padding of weight 0."""
    samples = min(samples, len(manifest))
    for step, first in enumerate(range(0, samples, micro_batch * world_size)):
        index = first + rank * micro_batch + np.arange(micro_batch, dtype=np.int64)
        yield step, index % samples, (index < samples).astype(np.float32)


def centre_requests(
    manifest: Manifest, data: Data, first: int, last: int, micro_batch: int, share: float
) -> Iterator[Request]:
    """Yield the samples `first` to `last` - 1 in order, each once; see `centre_request`."""
    for step, start in enumerate(range(first, last, micro_batch)):
        ids = np.arange(start, min(start + micro_batch, last), dtype=np.int64)
        yield centre_request(manifest, data, ids, share, step)


def centre_request(manifest: Manifest, data: Data, ids: NDArray[np.int64], share: float, step: int = 0) -> Request:
    """Return a request for the centres of samples, (m,), and of a video for the middle clip; nothing is masked.

    Args:
        manifest: the data set.
        data: size of the inputs, and choice of a clip's frames.
        ids: the samples.
        share: see `Shapes.centre_boxes`.
        step: the number of the batch.
    """
    shapes = Shapes.of(manifest, ids)
    boxes = shapes.centre_boxes(data, share)
    nothing = np.zeros(len(ids), dtype=np.int64)
    weights = np.ones(len(ids), dtype=np.float32)
    return Request(step, ids, boxes, nothing.astype(np.int32), nothing, weights, shapes.placed_frames(data.clip))
