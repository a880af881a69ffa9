"""Draw HOG for people: each cell's histogram as strokes along the edges in it."""

import math
from functools import cache

import torch
from torch import Tensor

from pipeline.targets.hog.arithmetic import BINS, CHANNELS

ENLARGED = 3  # scale of the drawing: strokes need space


def strokes(hog: Tensor, cell: int) -> Tensor:
    """Draw histograms.

    Args:
        hog: (B, rows, columns, numbers per patch) in [0, 1].
        cell: side of a cell in pixels.

    Returns:
        float64 (B, 1, height, width), on the same device, `ENLARGED` times as high and as wide as the images.
    """
    drawn_side = cell * ENLARGED
    images, rows, columns, width = hog.shape
    side = math.isqrt(width // (CHANNELS * BINS))  # cells along a side of a patch
    cells = hog.double().reshape(images, rows, columns, CHANNELS, BINS, side, side).mean(3).clamp(min=0)
    drawn = torch.einsum("nrcbyx,bij->nryicxj", cells, _glyphs(drawn_side).to(hog.device))
    return drawn.reshape(images, 1, rows * side * drawn_side, columns * side * drawn_side).clamp(max=1)


@cache
def _glyphs(side: int) -> Tensor:
    """Draw an antialiased line per bin through a cell's middle, (9, side, side), perpendicular to its gradients."""
    middle = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    # The gradient of bin b lies at (b + 1/2) * 20 degrees from the y axis towards x: the distance along it from
    # the middle is the distance from the line.
    angle = (torch.arange(BINS, dtype=torch.float64)[:, None, None] + 0.5) * math.pi / BINS
    across = (angle.sin() * x + angle.cos() * y).abs()
    along = (angle.cos() * x - angle.sin() * y).abs()
    return (1.6 - across).clamp(0, 1) * (side / 2 - along).clamp(0, 1)
