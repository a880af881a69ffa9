"""The pixels of a patch, normalised by their own mean and deviation.

Algorithm: as in the published code of MaskFeat (github.com/facebookresearch/SlowFast), which is that of He et al.,
"Masked Autoencoders Are Scalable Vision Learners", CVPR 2022 (`norm_pix_loss`): on the model's inputs,
whose channels are normalised, by ImageNet's statistics, one mean and one unbiased variance over all three channels
of a patch; a target is (x - mean) / sqrt(variance + 1e-6).

In a patch of one colour, the channels still differ, so its variance is that of three numbers. The 1e-6 bounds the
effect of rounding where even these agree: values of up to 2.7 are rounded by 1e-7, which is 1e-4 of a target's unit.
"""

from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from model.layout import Mask
from pipeline.pixels import IMAGENET, Channels, Statistics, normalise
from pipeline.targets.settings import TargetSettings
from pipeline.targets.target import Computing, Predictions, Regression

CHANNELS = 3
_EPS = 1e-6


def pixel_width(patch: int) -> int:
    """Return the numbers in the target of one patch of `patch` x `patch` pixels: 768 for 16."""
    return CHANNELS * patch**2


def pixel_target(images: Tensor, patch: int, index: Tensor, statistics: Statistics = IMAGENET) -> Tensor:
    """Compute the normalised pixels of some patches.

    Args:
        images: uint8 (B, 3, H, W); H and W multiples of `patch`.
        patch: pixels per side.
        index: int64 (n,), indices of patches in the flattened (B * patches).
        statistics: normalisation of the model's inputs.

    Returns:
        float32 (n, 3 * patch * patch), ordered (channel, row, column).
    """
    chosen = _in_patches(images, patch).flatten(0, 2)[index]  # as bytes: a quarter of the memory of floats
    mean, deviation, pixels = _moments(chosen, statistics)
    return (pixels - mean) / deviation


class Pixels(Regression):
    """The normalised pixels of patches. See `pixel_target` and `Target`.

    Args:
        patch: side of a patch in pixels.
        statistics: normalisation of the model's inputs.
    """

    label: ClassVar[str] = "pixels"
    described: ClassVar[str] = "the normalised pixels"
    requires: ClassVar[tuple[str, ...]] = ()
    accepts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, patch: int, statistics: Statistics = IMAGENET) -> None:
        self.width = pixel_width(patch)
        self.identity: dict[str, Any] = {"target.kind": "pixels"}
        self._patch, self._statistics = patch, statistics

    @staticmethod
    def output_width(settings: TargetSettings, predictions: Predictions) -> int:
        """See `Target`."""
        return pixel_width(predictions.side)

    @classmethod
    def build(cls, settings: TargetSettings, predictions: Predictions, computing: Computing) -> Self:
        """See `Target`."""
        return cls(predictions.side, computing.statistics)

    def describe(self, inputs: Tensor, mask: Mask) -> Tensor:
        """See `Target`; targets are float32 (masked, width)."""
        return pixel_target(inputs, self._patch, mask.indices, self._statistics)

    def paint(self, inputs: Tensor, targets: Tensor, outputs: Tensor | None = None) -> Tensor:
        """See `Target`: colours, the values times the deviation of the true patch, plus its mean."""
        values = targets if outputs is None else outputs
        mean, deviation, _ = _moments(_in_patches(inputs, self._patch).flatten(0, 2), self._statistics)
        pixels = (values.flatten(0, 2) * deviation + mean).view(*values.shape[:3], CHANNELS, self._patch, self._patch)
        colours = pixels.permute(0, 3, 1, 4, 2, 5).reshape(inputs.shape)
        shift, scale = (_channels(values, colours) for values in self._statistics)
        return (colours * scale + shift).clamp(0, 1)


def _in_patches(images: Tensor, patch: int) -> Tensor:
    """Cut images into patches: (B, 3, H, W) -> (B, rows, columns, 3, patch, patch)."""
    batch, _, height, width = images.shape
    return images.view(batch, CHANNELS, height // patch, patch, width // patch, patch).permute(0, 2, 4, 1, 3, 5)


def _moments(patches: Tensor, statistics: Statistics) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise uint8 (n, 3, patch, patch). Return mean and deviation, (n, 1), and pixels, (n, 3 * patch * patch)."""
    pixels = normalise(patches, torch.float32, statistics).flatten(1)
    variance, mean = torch.var_mean(pixels, dim=1, keepdim=True)
    return mean, (variance + _EPS).sqrt(), pixels


def _channels(values: Channels, like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device).view(CHANNELS, 1, 1)
