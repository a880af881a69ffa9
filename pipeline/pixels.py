"""Statistics of pixels, and normalisation with them."""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

Channels = tuple[float, float, float]


class Statistics(NamedTuple):
    """Mean and standard deviation of each channel's values, in [0, 1]."""

    mean: Channels
    std: Channels


# Statistics of ImageNet's training images, with which practically all vision transformers are trained.
IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def normalise(inputs: Tensor, dtype: torch.dtype, statistics: Statistics = IMAGENET) -> Tensor:
    """Return (inputs / 255 - mean) / std in `dtype`, computed in float32.

    Args:
        inputs: uint8 (B, 3, ...): images (B, 3, H, W), clips (B, 3, frames, H, W).
        dtype: dtype of the result.
        statistics: statistics of the channels.
    """
    shift, scale = _in_bytes(statistics, inputs.device)
    channels = (3, *[1] * (inputs.ndim - 2))
    return ((inputs.float() - shift.view(channels)) / scale.view(channels)).to(dtype)


@cache  # copied to the device once, not in every step
def _in_bytes(statistics: Statistics, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of values in 0..255, float32 (3,) each."""
    shift, scale = torch.tensor(statistics, device=device) * 255
    return shift, scale
