"""Histograms of oriented gradients at four scales, of cells of a quarter, half, one and two patches per side.

Algorithm: Wang et al., "Masked Image Modeling with Local Multi-Scale Reconstruction", CVPR 2023, section 3, with the
HOG of `pipeline.targets.hog.arithmetic`. Magnitudes are additive: the histogram of the finest cells is summed over 2x2
cells for the next scale, and each scale is scaled to unit length separately.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from model.layout import Layout, Mask
from pipeline.pixels import IMAGENET, Statistics
from pipeline.targets.hog.arithmetic import BINS, CHANNELS, check_images, compiled, histograms, in_patches, unit_length
from pipeline.targets.hog.glyphs import strokes
from pipeline.targets.settings import TargetSettings
from pipeline.targets.target import Computing, Predictions, Regression

NUMBERS = CHANNELS * BINS
SIDES = (4, 2, 1)  # cells along a side of a patch, finest first; the cells of the fourth scale are of 2x2 patches
WIDTHS = [*(NUMBERS * side**2 for side in SIDES), NUMBERS]  # numbers per patch, by scale
WIDTH = sum(WIDTHS)
PATCHES = (8, 16, 32)  # pixels per side, such that a warp covers columns of the finest cells


def hog_scales(images: Tensor, patch: int = 16) -> Tensor:
    """Compute the HOG of every patch at four scales.

    Args:
        images: uint8 (B, 3, H, W) in any memory format; H and W multiples of two patches.
        patch: pixels per side, one of `PATCHES`.

    Returns:
        float32 (B, patches, 594), patches row-major. A patch's numbers are ordered (scale, channel, bin, cell row, cell
        column): 432 of its 16 cells, 108 of 4, 27 of 1, and 27 of the cell of 2x2 patches that contains it.

    Raises:
        ValueError: wrong dtype or shape.
    """
    check_scales(images, patch)
    histogram = histograms(images, patch // SIDES[0])
    scales = []
    for side in SIDES:
        scales.append(in_patches(unit_length(histogram), side))
        histogram = summed(histogram)
    return torch.cat(
        [*scales, in_patches(unit_length(histogram).repeat_interleave(2, -1).repeat_interleave(2, -2), 1)], 2
    )


def summed(histogram: Tensor) -> Tensor:
    """Sum the histograms of 2x2 cells: (B, 3, 9, rows, columns) -> (B, 3, 9, rows / 2, columns / 2)."""
    sums = F.avg_pool2d(histogram.flatten(0, 1), 2, divisor_override=1)
    return sums.view(*histogram.shape[:2], *sums.shape[1:])


def check_scales(images: Tensor, patch: int) -> None:
    """Check images and patches for four scales. Raises ValueError."""
    check_images(images)
    _check(Layout(1, images.shape[2] // patch, images.shape[3] // patch), patch)
    if images.shape[2] % patch or images.shape[3] % patch:
        raise ValueError(
            f"images of {images.shape[2]}x{images.shape[3]} pixels do not divide into {patch}-pixel patches"
        )


def _check(layout: Layout, patch: int) -> None:
    if patch not in PATCHES:
        raise ValueError(f"target.kind=hog_scales needs patches of 8, 16 or 32 pixels, not of {patch}")
    if layout.rows % 2 or layout.columns % 2:
        raise ValueError(
            f"target.kind=hog_scales needs squares of 2x2 patches, which do not fill a grid of {layout}: "
            "change data.image_size"
        )


class HogScales(Regression):
    """Histograms at four scales. See `hog_scales` and `Target`.

    Args:
        patch: side of a patch in pixels.
        compile: compile the histograms by torch.
        statistics: normalisation of the model's inputs.
    """

    label: ClassVar[str] = "HOG"
    described: ClassVar[str] = "the HOG descriptors, at four scales,"
    requires: ClassVar[tuple[str, ...]] = ()
    accepts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, patch: int, compile: bool, statistics: Statistics = IMAGENET) -> None:
        self.width = WIDTH
        self.identity: dict[str, Any] = {"target.kind": "hog_scales"}
        self._patch, self._statistics = patch, statistics
        self._target: Callable[..., Tensor] = compiled(hog_scales) if compile else hog_scales

    @staticmethod
    def loss_name(settings: TargetSettings) -> str:
        """See `Target`."""
        return "squared errors, summed over four scales"

    @staticmethod
    def output_width(settings: TargetSettings, predictions: Predictions) -> int:
        """See `Target`."""
        _check(predictions.layout, predictions.side)
        return WIDTH

    @classmethod
    def build(cls, settings: TargetSettings, predictions: Predictions, computing: Computing) -> Self:
        """See `Target`."""
        return cls(predictions.side, computing.compile, computing.statistics)

    def describe(self, inputs: Tensor, mask: Mask) -> Tensor:
        """See `Target`; targets are float32 (masked, 594)."""
        return self._target(inputs, self._patch).flatten(0, 1)[mask.indices]

    def inputs_and_targets(
        self, inputs: Tensor, mask: Mask, dtype: torch.dtype, step: int = 1
    ) -> tuple[Tensor, Tensor]:
        """See `Fused`."""
        from pipeline.targets.hog.scales_triton import normalised_and_scales  # needs Triton

        return normalised_and_scales(inputs, mask, self._patch, *self._statistics, dtype, step=step)

    def losses(self, outputs: Tensor, targets: Tensor, batch_size: int) -> Tensor:
        """Sum the mean squared errors of the scales, float32 (batch_size,).

        A cell of 2x2 patches counts once for each of its masked patches.
        """
        errors = torch.split((outputs.float() - targets).square(), WIDTHS, dim=1)
        return torch.stack([scale.reshape(batch_size, -1).mean(1) for scale in errors]).sum(0)

    def paint(self, inputs: Tensor, targets: Tensor, outputs: Tensor | None = None) -> Tensor:
        """See `Target`: strokes along the edges, at the scale of half a patch."""
        numbers = targets if outputs is None else outputs
        return strokes(numbers[..., WIDTHS[0] : WIDTHS[0] + WIDTHS[1]], self._patch // SIDES[1])
