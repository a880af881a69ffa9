"""Statistics of pixels, and inputs that are normalised with them."""

from functools import cache

import torch
from torch import Tensor

Channels = tuple[float, float, float]

# The statistics of ImageNet's training images that practically all vision transformers are trained with.
MEAN: Channels = (0.485, 0.456, 0.406)
STD: Channels = (0.229, 0.224, 0.225)


def normalise(inputs: Tensor, dtype: torch.dtype, mean: Channels = MEAN, std: Channels = STD) -> Tensor:
    """Return (inputs / 255 - mean) / std in `dtype`, computed in float32.

    Args:
        inputs: uint8 (B, 3, ...): images (B, 3, H, W), clips (B, 3, frames, H, W).
        dtype: of the result.
        mean, std: of each channel, of values in [0, 1].
    """
    shift, scale = _statistics(mean, std, inputs.device)
    channels = (3, *[1] * (inputs.ndim - 2))
    return ((inputs.float() - shift.view(channels)) / scale.view(channels)).to(dtype)


@cache  # copied to the device once, not at every step
def _statistics(mean: Channels, std: Channels, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation of values in 0..255, float32 (3,) each."""
    shift, scale = torch.tensor([mean, std], device=device) * 255
    return shift, scale
