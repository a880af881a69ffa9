"""Draw crops and flips as numbers per sample, so that pixels depend on (seed, epoch, sample) and nothing else.

Random resized crops follow torchvision's `RandomResizedCrop`: up to ten draws of area and aspect ratio, then the
largest centred crop of an allowed ratio.
"""

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.random import derive, uniform

Int64s = NDArray[np.int64]
Boxes = NDArray[np.int32]

_TRIES = 10
_CROP, _FLIP, _MASK, _CLIP = 1, 2, 3, 4  # streams of randomness from a sample's key


def sample_keys(seed: int, epochs: Int64s, ids: Int64s) -> Int64s:
    """Return the key of all randomness of sample `ids[i]` in epoch `epochs[i]`; int64 (n,)."""
    return derive(derive(np.full_like(ids, seed), epochs), ids)


def mask_keys(keys: Int64s) -> Int64s:
    """Derive the keys for `pipeline.masks.blocks.block_masks` from the samples' keys; int64 (n,)."""
    return derive(keys, _MASK)


def clip_keys(keys: Int64s) -> Int64s:
    """Derive the keys for the choice of frames from the samples' keys; int64 (n,)."""
    return derive(keys, _CLIP)


def repeat_keys(keys: Int64s, repeats: int) -> Int64s:
    """Derive the keys of `repeats` inputs for each of m samples, those of a sample in a row; int64 (m * repeats,)."""
    if repeats == 1:
        return keys
    return derive(keys[:, None], np.arange(repeats, dtype=np.int64)).reshape(-1)


def random_flips(keys: Int64s) -> NDArray[np.int32]:
    """Return 1 for a random half of the samples, which are to be mirrored, else 0; int32 (n,)."""
    return (uniform(derive(keys, _FLIP)) < 0.5).astype(np.int32)


def random_resized_crops(
    keys: Int64s,
    heights: NDArray[np.int32],
    widths: NDArray[np.int32],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Boxes:
    """Draw boxes, int32 (n, 4): top, left, height, width in pixels, inside images of heights x widths (n,).

    Args:
        keys: the samples' keys, (n,).
        scale: lowest and highest share of the image's area.
        ratio: lowest and highest width over height; uniform in its logarithm.
    """
    draws = uniform(derive(derive(keys, _CROP)[:, None], np.arange(_TRIES * 4, dtype=np.int64)))
    area_draw, ratio_draw, down, across = np.moveaxis(draws.reshape(-1, _TRIES, 4), 2, 0)
    image_height, image_width = heights[:, None].astype(np.int64), widths[:, None].astype(np.int64)
    area = image_height * image_width * (scale[0] + (scale[1] - scale[0]) * area_draw)
    aspect = np.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * ratio_draw)
    width = np.round(np.sqrt(area * aspect)).astype(np.int64)
    height = np.round(np.sqrt(area / aspect)).astype(np.int64)
    fits = np.logical_and((width > 0) & (width <= image_width), (height > 0) & (height <= image_height))
    top = (down * (image_height - height + 1)).astype(np.int64)
    left = (across * (image_width - width + 1)).astype(np.int64)

    first = np.argmax(fits, axis=1)
    chosen = np.stack([top, left, height, width], axis=-1)[np.arange(len(keys)), first]
    return np.where(np.any(fits, axis=1, keepdims=True), chosen, centre_crops(heights, widths, ratio)).astype(np.int32)


def centre_crops(
    heights: NDArray[np.int32],
    widths: NDArray[np.int32],
    ratio: tuple[float, float] = (1.0, 1.0),
    share: float = 1.0,
) -> Boxes:
    """Return the largest centred boxes with width over height in `ratio`, their sides times `share`; int32 (n, 4)."""
    width = np.minimum(widths, np.round(heights * ratio[1]))
    height = np.minimum(heights, np.round(widths / ratio[0]))
    width = np.maximum(1, np.round(width * share))
    height = np.maximum(1, np.round(height * share))
    top, left = np.round((heights - height) / 2), np.round((widths - width) / 2)
    return np.stack([top, left, height, width], axis=1).astype(np.int32)
