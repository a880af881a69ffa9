"""HOG as a person can see it: each cell's histogram as strokes along the edges that it found."""

import math
from functools import cache

import torch
from torch import Tensor

from pipeline.targets.hog.arithmetic import BINS, CHANNELS

ENLARGED = 3  # pixels that a pixel is drawn with: strokes need room


def strokes(hog: Tensor, cell: int) -> Tensor:
    """Draw histograms.

    Args:
        hog: (B, rows, columns, numbers of a patch) in [0, 1].
        cell: side of a cell in pixels.

    Returns:
        float64 (B, 1, height, width), on their device, `ENLARGED` times as high and as wide as the images.
    """
    drawn_side = cell * ENLARGED
    images, rows, columns, width = hog.shape
    side = math.isqrt(width // (CHANNELS * BINS))  # cells of a patch
    cells = hog.double().reshape(images, rows, columns, CHANNELS, BINS, side, side).mean(3).clamp(min=0)
    drawn = torch.einsum("nrcbyx,bij->nryicxj", cells, _glyphs(drawn_side).to(hog.device))
    return drawn.reshape(images, 1, rows * side * drawn_side, columns * side * drawn_side).clamp(max=1)


@cache
def _glyphs(side: int) -> Tensor:
    """Draw an antialiased line a bin through the middle of a cell, (9, side, side), perpendicular to its gradients."""
    middle = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    # The gradient of bin b lies at (b + 1/2) * 20 degrees from the y axis towards x: the distance along it from
    # the middle is the distance from the line.
    angle = (torch.arange(BINS, dtype=torch.float64)[:, None, None] + 0.5) * math.pi / BINS
    across = (angle.sin() * x + angle.cos() * y).abs()
    along = (angle.cos() * x - angle.sin() * y).abs()
    return (1.6 - across).clamp(0, 1) * (side / 2 - along).clamp(0, 1)
