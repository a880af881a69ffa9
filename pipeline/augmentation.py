"""Change colour and sharpness of training images and clips, on the device; off by default.

Colours change as by DALI's `color_twist`: hue and saturation by a matrix between RGB and YIQ, then contrast around the
middle grey 128, then brightness. Factors are drawn as by torchvision's `ColorJitter`, whose own changes differ in that
their order is drawn, too, and contrast is around the mean of the image. Blurring is that of DALI's `gaussian_blur`.

All random choices are functions of an input's key, so they depend on seed, epoch and sample only.
"""

import math
from functools import cache
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from model.size import ImageSize
from pipeline.random import derive, uniform
from pipeline.settings import Section

Strength = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]

_STREAM = 1 << 32  # first stream of randomness here from an input's key, beyond those of its mask
_DRAWS = 8
_RADIUS = 6  # pixels on each side that contribute to a blurred pixel
_SIGMAS = (0.1, 2.0)  # pixels, as in Chen et al., "A Simple Framework for Contrastive Learning", ICML 2020
_MIDDLE = 128.0
_TO_YIQ = ((0.299, 0.587, 0.114), (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))


class Augment(Section):
    """The augmentation of training images, besides crop and flip. Validation images are not changed."""

    brightness: Strength = 0.0
    """Brightness is multiplied by a factor from 1 - this to 1 + this."""
    contrast: Strength = 0.0
    """The same for the contrast, around the middle grey 128."""
    saturation: Strength = 0.0
    """The same for the saturation."""
    hue: float = Field(0.0, ge=0, le=0.5)
    """Largest change of the hue, in turns of the circle of colours."""
    jitter: Probability = 1.0
    """Probability that the colours of an image are changed by all four settings above."""
    grey: Probability = 0.0
    """Probability that an image becomes grey."""
    blur: Probability = 0.0
    """Probability that an image is blurred, by a Gaussian of 0.1 to 2 pixels."""

    @property
    def changes_colours(self) -> bool:
        """Return whether the colours of any image change."""
        jitters = self.jitter * max(self.brightness, self.contrast, self.saturation, self.hue)
        return jitters > 0 or self.grey > 0


def check_size(settings: Augment, size: ImageSize) -> None:
    """Raise ValueError for images that are too small to be blurred."""
    if settings.blur and min(size) <= _RADIUS:
        raise ValueError(f"augment.blur needs images of more than {_RADIUS} pixels, not data.image_size={size.setting}")


def augmented(inputs: Tensor, keys: Tensor, settings: Augment) -> Tensor:
    """Augment inputs, without waiting for the device.

    Args:
        inputs: uint8 images (B, 3, H, W) or clips (B, 3, frames, H, W), whose frames all change alike. To be blurred,
            they pass `check_size`.
        keys: keys of the inputs, int64 (B,).
        settings: the strengths.

    Returns:
        uint8, the shape of `inputs`; where the settings change nothing, `inputs` themselves.
    """
    if not (settings.changes_colours or settings.blur):
        return inputs
    places = torch.arange(_DRAWS, device=keys.device)
    draws = uniform(derive(derive(keys, _STREAM)[:, None], places)).unbind(1)
    pixels = inputs.flatten(2).float()
    if settings.changes_colours:
        matrix, summand = colour_changes(*_factors(draws, settings))
        pixels = torch.baddbmm(summand[:, None, None], matrix, pixels)
        pixels = pixels.round_().clamp_(0, 255)
    pixels = pixels.view(inputs.shape)
    if settings.blur:
        sigmas = _SIGMAS[0] + (_SIGMAS[1] - _SIGMAS[0]) * draws[7]
        chosen = (draws[6] < settings.blur).view(-1, *[1] * (inputs.ndim - 1))
        pixels = torch.where(chosen, blurred(pixels, sigmas).round_(), pixels)
    return pixels.to(torch.uint8)


def colour_changes(brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> tuple[Tensor, Tensor]:
    """Return matrices and summands that change colours: new RGB = matrix @ RGB + summand, for values in 0..255.

    Args:
        brightness, contrast, saturation: factors, (n,).
        hue: radians, (n,).

    Returns:
        float32 (n, 3, 3) and (n,).
    """
    to_yiq, to_rgb = _between_colours(hue.device)
    turned = torch.zeros(len(hue), 3, 3, device=hue.device)
    turned[:, 0, 0] = 1
    turned[:, 1, 1] = turned[:, 2, 2] = saturation * hue.cos()
    turned[:, 1, 2] = saturation * hue.sin()
    turned[:, 2, 1] = -turned[:, 1, 2]
    matrix = to_rgb @ turned @ to_yiq * (brightness * contrast)[:, None, None]
    return matrix, brightness * _MIDDLE * (1 - contrast)


def blurred(pixels: Tensor, sigmas: Tensor) -> Tensor:
    """Blur images or clips by Gaussians, reflected at the borders.

    Args:
        pixels: float32 (B, 3, ..., H, W).
        sigmas: standard deviations in pixels, (B,).
    """
    taps = torch.arange(-_RADIUS, _RADIUS + 1, device=pixels.device)
    weights = F.normalize((-(taps**2) / (2 * sigmas[:, None] ** 2)).exp(), p=1, dim=1)  # (B, taps)
    planes = pixels.shape[1:-2].numel()  # of an input
    kernels = weights.repeat_interleave(planes, dim=0)[:, None, None]
    x = F.pad(pixels.reshape(1, -1, *pixels.shape[-2:]), [_RADIUS] * 4, mode="reflect")
    x = F.conv2d(F.conv2d(x, kernels, groups=len(kernels)), kernels.mT, groups=len(kernels))
    return x.view(pixels.shape)


def _factors(draws: tuple[Tensor, ...], settings: Augment) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return brightness, contrast, saturation and hue for `colour_changes`."""
    strengths = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
    changed = draws[4] < settings.jitter
    brightness, contrast, saturation, turns = (
        (2 * draw - 1) * strength * changed for draw, strength in zip(draws[:4], strengths, strict=True)
    )
    coloured = draws[5] >= settings.grey
    return 1 + brightness, 1 + contrast, (1 + saturation) * coloured, turns * (2 * math.pi)


@cache  # copied to the device once, not in every step
def _between_colours(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the matrices from RGB to YIQ and back, float32 (3, 3)."""
    to_yiq = torch.tensor(_TO_YIQ, dtype=torch.float64)
    return to_yiq.float().to(device), to_yiq.inverse().float().to(device)
