"""HOG as a person can see it: each cell's histogram as strokes along the edges that it found."""

import math
from functools import cache

import torch
from torch import Tensor

from pipeline.targets.hog.arithmetic import BINS, CELL, CHANNELS

ENLARGED = 3  # pixels that a pixel is drawn with: strokes need room
_SIDE = CELL * ENLARGED


def strokes(hog: Tensor) -> Tensor:
    """Histograms (B, rows, columns, numbers a patch) in [0, 1]: float64 (B, 1, height, width), on their device."""
    images, rows, columns, width = hog.shape
    side = math.isqrt(width // (CHANNELS * BINS))  # cells of a patch
    cells = hog.double().reshape(images, rows, columns, CHANNELS, BINS, side, side).mean(3).clamp(min=0)
    drawn = torch.einsum("nrcbyx,bij->nryicxj", cells, _glyphs().to(hog.device))
    return drawn.reshape(images, 1, rows * side * _SIDE, columns * side * _SIDE).clamp(max=1)


@cache
def _glyphs() -> Tensor:
    """One antialiased line a bin through the middle of a cell, (9, side, side), perpendicular to its gradients."""
    middle = torch.arange(_SIDE, dtype=torch.float64) - (_SIDE - 1) / 2
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    # The gradient of bin b lies at (b + 1/2) * 20 degrees from the y axis towards x: the distance along it from
    # the middle is the distance from the line.
    angle = (torch.arange(BINS, dtype=torch.float64)[:, None, None] + 0.5) * math.pi / BINS
    across = (angle.sin() * x + angle.cos() * y).abs()
    along = (angle.cos() * x - angle.sin() * y).abs()
    return (1.6 - across).clamp(0, 1) * (_SIDE / 2 - along).clamp(0, 1)
