"""The views of a multi-view test: several clips of a video and several crops of each, at fixed places."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.augment import Boxes, centre_crops
from pipeline.data.request import Request, Shapes, samples_once
from pipeline.data.settings import Clip
from shards.manifest import Manifest

CENTRE = 224 / 256  # share of the short side in a single crop


@dataclass(frozen=True, order=True)
class View:
    """One of `clips` evenly spaced clips of a video, and one of 1 or 3 crops; both are numbered from 0.

    A single crop is the centre: `CENTRE` of the short side. Three crops have all of the short side, and lie at the
    left, in the centre and at the right, or at the top, in the centre and at the bottom of an upright video.
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
    chosen: Sequence[View],
    *,
    clip: Clip | None,
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
        chosen: views, such as those of `views`; those of several lists may be joined, to test them in one pass.
        clip: the settings of a clip; None: the samples are images, and views differ only in their crops.
        samples: number of samples.
        micro_batch: samples per micro-batch, not inputs.
        rank, world_size: this rank and the number of ranks.
    """
    for step, ids, weights in samples_once(manifest, samples, micro_batch, rank, world_size):
        shapes = Shapes.of(manifest, ids)
        boxes = np.stack([view_boxes(shapes.heights, shapes.widths, view) for view in chosen], axis=1)
        placed = (shapes.placed_frames(clip, view.clip, view.clips) for view in chosen)
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


def view_boxes(heights: NDArray[np.int32], widths: NDArray[np.int32], view: View) -> Boxes:
    """Return the crops of a view, int32 (n, 4): top, left, height and width."""
    if view.crops == 1:
        return centre_crops(heights, widths, share=CENTRE)
    boxes = centre_crops(heights, widths)
    along = np.where(heights > widths, 0, 1)  # the side that is longer than a crop
    boxes[np.arange(len(boxes)), along] = (np.abs(heights - widths) * view.crop + 1) // 2
    return boxes
