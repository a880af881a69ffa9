"""The views of a multi-view test: several clips of a video and several crops of each, at fixed places."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.augment import Boxes
from pipeline.data.request import Request, Shapes, samples_once
from pipeline.data.settings import Data
from shards.manifest import Manifest

CENTRE = 224 / 256  # share of the largest centred crop in a single crop


@dataclass(frozen=True, order=True)
class View:
    """One of `clips` evenly spaced clips of a video, and one of 1 or 3 crops; both are numbered from 0.

    A single crop is the centre: `CENTRE` of the largest crop with the ratio of the inputs. Three crops are as large as
    that, and lie at the left, in the centre and at the right of videos that are wider than a crop, else at the top, in
    the centre and at the bottom.
    """

    clips: int
    clip: int
    crops: int = 1
    crop: int = 0


def views(clips: int, crops: int = 1) -> list[View]:
    """Return all views of `clips` clips with `crops` crops each, clip by clip. Raises ValueError for other crops."""
    if crops not in (1, 3):
        raise ValueError(f"a clip has 1 crop or 3, not {crops}")
    return [View(clips, clip, crops, crop) for clip in range(clips) for crop in range(crops)]


def view_requests(
    manifest: Manifest,
    data: Data,
    chosen: Sequence[View],
    *,
    samples: int,
    micro_batch: int,
    rank: int,
    world_size: int,
) -> Iterator[Request]:
    """Yield the first `samples` samples once over all ranks, in all chosen views; each is read and decoded once.

    Input i of a request is view i % v of sample i // v, where v views are chosen. Every rank gets the same number of
    equal micro-batches; to fill them up, samples are repeated with weight 0.

    Args:
        manifest: the data set.
        data: size of the inputs, and choice of a clip's frames; for images views differ only in their crops.
        chosen: views, such as those of `views`; those of several lists may be joined, to test them in one pass.
        samples: number of samples.
        micro_batch: samples per micro-batch, not inputs.
        rank, world_size: this rank and the number of ranks.
    """
    for step, ids, weights in samples_once(manifest, samples, micro_batch, rank, world_size):
        shapes = Shapes.of(manifest, ids)
        boxes = np.stack([view_boxes(shapes, data, view) for view in chosen], axis=1)
        placed = (shapes.placed_frames(data.clip, view.clip, view.clips) for view in chosen)
        frames = [of_view for of_view in placed if of_view is not None]
        nothing = np.zeros(micro_batch * len(chosen), dtype=np.int64)
        yield Request(
            step,
            ids,
            boxes.reshape(-1, 4),
            nothing.astype(np.int32),
            nothing,
            weights.repeat(len(chosen)),
            np.stack(frames, axis=1).reshape(len(nothing), -1) if frames else None,
        )


def view_boxes(shapes: Shapes, data: Data, view: View) -> Boxes:
    """Return the crops of a view, int32 (n, 4): top, left, height and width."""
    if view.crops == 1:
        return shapes.centre_boxes(data, CENTRE)
    boxes = shapes.centre_boxes(data, 1.0)
    beyond = np.stack([shapes.heights, shapes.widths], axis=1) - boxes[:, 2:]  # one of them is 0
    boxes[:, :2] = (beyond * view.crop + 1) // 2
    return boxes
