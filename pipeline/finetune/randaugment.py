"""RandAugment on the device: timm's `rand-m9-mstd0.5-inc1`, with random choices that depend on the sample only.

Algorithm: Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", NeurIPS 2020,
with the transforms, levels and probabilities of timm's `data/auto_augment.py`, which published fine-tuning recipes use.
Each of two layers changes half of the images by one of 15 transforms. The choice is made on the host, so an image is
changed alike in any batch, and images with the same transform are changed together, without waiting for the device.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.device import to_device
from pipeline.finetune import transforms
from pipeline.random import derive, uniform

Int64s = NDArray[np.int64]
Floats = NDArray[np.float64]

MAX_LEVEL = 10.0

_RAND_AUGMENT = 1  # stream of randomness from a sample's key; `erasing` has the next ones


def rand_augment(
    images: Tensor,
    keys: Int64s,
    magnitude: float = 9.0,
    deviation: float = 0.5,
    layers: int = 2,
    probability: float = 0.5,
) -> Tensor:
    """Augment copies of uint8 images (B, 3, H, W), on their device and in their memory format.

    All frames of clips, (B, 3, frames, H, W), are changed alike.

    Args:
        images: RGB.
        keys: int64 (B,) on the host; equal keys give equal changes in any batch.
        magnitude: mean of the levels, which are normally distributed and clipped to 0..10.
        deviation: their standard deviation.
        layers: number of consecutive transforms.
        probability: probability that each is applied.
    """
    if images.ndim == 5:
        frames = images.transpose(1, 2)
        keys = keys.repeat(frames.shape[1])
        changed = rand_augment(frames.flatten(0, 1), keys, magnitude, deviation, layers, probability)
        return changed.view(frames.shape).transpose(1, 2)
    kinds, arguments = draw(keys, magnitude, deviation, layers, probability)
    order = np.argsort(kinds, axis=1, kind="stable")
    arguments = np.take_along_axis(arguments, order, axis=1)
    places = to_device(torch.from_numpy(order), images.device)
    on_device = to_device(torch.from_numpy(arguments), images.device)

    images = images.clone()
    for layer, drawn in enumerate(np.take_along_axis(kinds, order, axis=1)):
        bounds = np.searchsorted(drawn, np.arange(len(TRANSFORMS) + 1)).tolist()
        for transform, first, last in zip(TRANSFORMS.values(), bounds[:-1], bounds[1:], strict=True):
            if first < last:
                these = places[layer, first:last]
                changed = transform.apply(images.index_select(0, these), on_device[layer, first:last])
                images.index_copy_(0, these, changed)
    return images


def draw(keys: Int64s, magnitude: float, deviation: float, layers: int, probability: float) -> tuple[Int64s, Floats]:
    """Draw each sample's changes: places in `TRANSFORMS`, or -1 for none, and their arguments; (layers, B) each."""
    streams = derive(derive(keys, _RAND_AUGMENT)[:, None], np.arange(layers * 5, dtype=np.int64))
    applied, kind, radius, angle, sign = uniform(streams).reshape(len(keys), layers, 5).transpose(2, 1, 0)
    kinds = np.where(applied < probability, (kind * len(TRANSFORMS)).astype(np.int64), -1)
    normal = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)  # Box and Muller
    levels = np.clip(magnitude + deviation * normal, 0, MAX_LEVEL)
    signs = np.where(sign < 0.5, -1.0, 1.0)
    drawn = [kinds == index for index in range(len(TRANSFORMS))]
    return kinds, np.select(drawn, [transform.argument(levels, signs) for transform in TRANSFORMS.values()])


@dataclass(frozen=True)
class Transform:
    """One kind of change.

    Attributes:
        argument: maps a level in 0..10 and a sign, 1 or -1, to the argument of `apply`: float64, of their shape.
        apply: uint8 images (n, 3, H, W) and an argument for each, float64 (n,) on the same device -> changed images.
    """

    argument: Callable[[Floats, Floats], Floats]
    apply: Callable[[Tensor, Tensor], Tensor]


def _nothing(level: Floats, _: Floats) -> Floats:
    return np.zeros_like(level)


def _factor(level: Floats, sign: Floats) -> Floats:
    return np.maximum(0.1, 1.0 + sign * (level / MAX_LEVEL * 0.9))


def _signed(largest: float) -> Callable[[Floats, Floats], Floats]:
    return lambda level, sign: sign * (level / MAX_LEVEL * largest)


TRANSFORMS = {  # in timm's order and by its names, without "Increasing"
    "AutoContrast": Transform(_nothing, transforms.autocontrast),
    "Equalize": Transform(_nothing, transforms.equalize),
    "Invert": Transform(_nothing, transforms.invert),
    "Rotate": Transform(_signed(30.0), transforms.rotate),
    "Posterize": Transform(lambda level, _: 4 - np.floor(level / MAX_LEVEL * 4), transforms.posterize),
    "Solarize": Transform(lambda level, _: 256 - np.floor(level / MAX_LEVEL * 256), transforms.solarize),
    "SolarizeAdd": Transform(lambda level, _: np.floor(level / MAX_LEVEL * 110), transforms.solarize_add),
    "Color": Transform(_factor, transforms.color),
    "Contrast": Transform(_factor, transforms.contrast),
    "Brightness": Transform(_factor, transforms.brightness),
    "Sharpness": Transform(_factor, transforms.sharpness),
    "ShearX": Transform(_signed(0.3), transforms.shear_x),
    "ShearY": Transform(_signed(0.3), transforms.shear_y),
    "TranslateXRel": Transform(_signed(0.45), transforms.translate_x),
    "TranslateYRel": Transform(_signed(0.45), transforms.translate_y),
}
