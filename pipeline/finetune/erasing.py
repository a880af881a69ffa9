"""Random erasing: a box of noise in some of the images, as in timm's `RandomErasing` with mode `pixel`.

Algorithm: Zhong et al., "Random Erasing Data Augmentation", AAAI 2020. A box to erase is drawn like a box to crop;
unlike timm's, it may span the whole side.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.augment import Boxes, random_resized_crops
from pipeline.random import derive, uniform

_ERASED, _BOX = 2, 3  # streams of randomness from a sample's key; `randaugment` has the first


def random_erasing(
    images: Tensor,
    keys: NDArray[np.int64],
    probability: float = 0.25,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Tensor:
    """Erase boxes of normalised images, floats (B, 3, H, W), in place, without waiting for the device.

    In clips, (B, 3, frames, H, W), the box is the same in all frames, and the noise differs, as in SlowFast.
    The boxes are functions of the keys, int64 (B,) on the host; the standard normal noise comes from torch's generator.
    """
    places, boxes = erased_boxes(keys, images.shape[-2], images.shape[-1], probability, area, aspect)
    for place, (top, left, height, width) in zip(places.tolist(), boxes.tolist(), strict=True):
        box = images[place, ..., top : top + height, left : left + width]
        box.copy_(torch.randn_like(box))
    return images


def erased_boxes(
    keys: NDArray[np.int64],
    height: int,
    width: int,
    probability: float,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[NDArray[np.int64], Boxes]:
    """Return the places in the batch of the images to erase, int64 (m,), and their boxes, as in `random_resized_crops`.

    Args:
        keys: keys of the samples, int64 (B,).
        height: height of every image in pixels.
        width: their width.
        probability: probability that an image is erased.
        area: lowest and highest share of the image's area.
        aspect: lowest and highest width over height of the box; uniform in its logarithm.
    """
    places = np.flatnonzero(uniform(derive(keys, _ERASED)) < probability)
    heights, widths = np.full_like(places, height, np.int32), np.full_like(places, width, np.int32)
    return places, random_resized_crops(derive(keys[places], _BOX), heights, widths, area, aspect)
