"""Histograms of oriented gradients, MaskFeat's target. The reference implementation.

Algorithm: Wei et al., "Masked Feature Prediction for Self-Supervised Visual Pre-Training", CVPR 2022, section 3,
with the details of its published code: Sobel gradients of each colour channel, hard assignment to 9 unsigned
orientations, magnitudes summed over 8x8-pixel cells, each cell's 9 numbers scaled to unit length, no block
normalisation.
Patches that are not made of 8x8-pixel cells, such as those of 14 pixels, have cells of nearly that size (`cell_of`).

One deliberate difference: gradients are computed on the 0..255 integers, not on mean/std-normalised floats. A HOG
is invariant under a per-channel affine map, and every integer gradient is exact in float32, so flat regions are
exactly zero here and bins do not depend on the device, whereas the float version turns rounding noise into random
unit vectors.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CELL = 8  # pixels per side, for the paper's patches of 16
_CELLS = range(4, 17)  # possible pixels per side: in smaller cells, the nine orientations are mostly empty
BINS = 9
CHANNELS = 3


def cell_of(patch: int) -> int:
    """Return the side of a cell in pixels: the divisor of `patch` nearest to 8, the smaller of two equally near.

    It is 8 for patches of 8, 16, 24 and 32 pixels, and 7 for those of 14.

    Raises:
        ValueError: no divisor is from 4 to 16.
    """
    sides = [side for side in _CELLS if patch % side == 0]
    if not sides:
        raise ValueError(
            f"a patch of {patch} pixels is not made of whole HOG cells, of {_CELLS[0]} to {_CELLS[-1]} pixels a side: "
            f"use a patch of {CELL}, 14 or {2 * CELL} pixels"
        )
    return min(sides, key=lambda side: abs(side - CELL))


def target_width(patch: int) -> int:
    """Return the numbers in the target of one patch of `patch` x `patch` pixels: 108 for 14 and for 16.

    Raises:
        ValueError: the patch is not made of whole cells.
    """
    return CHANNELS * BINS * (patch // cell_of(patch)) ** 2


def check(images: Tensor, patch: int) -> None:
    """Check images and patches.

    Raises:
        ValueError: images are not uint8 (B, 3, H, W), or not whole patches, or patches are not whole cells.
    """
    check_images(images)
    target_width(patch)
    height, width = images.shape[2:]
    if height % patch or width % patch:
        raise ValueError(f"images of {height}x{width} pixels do not divide into {patch}-pixel patches")


def check_images(images: Tensor) -> None:
    """Raise ValueError unless images are uint8 (B, 3, H, W)."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != CHANNELS:
        raise ValueError(f"expected uint8 images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")


def hog_target(images: Tensor, patch: int = 16) -> Tensor:
    """Compute the HOG of every patch.

    Args:
        images: uint8 (B, 3, H, W) in any memory format; H and W multiples of `patch`.
        patch: pixels per side, a multiple of a cell (`cell_of`).

    Returns:
        float32 (B, patches, width), patches row-major; a patch's numbers, 108 for 16 pixels (`target_width`), are
        ordered (channel, bin, cell row, cell column).

    Raises:
        ValueError: wrong dtype or shape.
    """
    check(images, patch)
    cell = cell_of(patch)
    return in_patches(unit_length(histograms(images, cell)), patch // cell)


def histograms(images: Tensor, cell: int) -> Tensor:
    """Sum gradient magnitudes by orientation over cells.

    Args:
        images: uint8 (B, 3, H, W); H and W multiples of `cell`.
        cell: pixels per side.

    Returns:
        float32 (B, 3, 9, rows of cells, columns of cells).
    """
    batch, _, height, width = images.shape
    gx, gy = _sobel(images)
    magnitude = torch.sqrt(gx * gx + gy * gy)
    # Rows before columns: the compiled code then runs along rows of pixels, 9 times faster than over 8x8 cells.
    rows_of_pixels = (batch, CHANNELS, height // cell, cell, width)
    in_rows = torch.stack(
        [torch.where(here, magnitude, 0.0).reshape(rows_of_pixels).sum(3) for here in within_bins(gx, gy)], dim=2
    )
    return in_rows.reshape(*in_rows.shape[:-1], width // cell, cell).sum(-1)


def unit_length(histogram: Tensor) -> Tensor:
    """Scale the nine numbers of each cell to unit length; those of a flat cell stay zero."""
    return F.normalize(histogram, dim=2, eps=1e-12)


def in_patches(histogram: Tensor, side: int) -> Tensor:
    """Gather the numbers of each patch: (B, 3, 9, rows, columns) -> (B, patches, 27 * side * side).

    Args:
        histogram: histograms of cells.
        side: cells along a side of a patch.
    """
    batch, _, _, rows, columns = histogram.shape
    cells = histogram.reshape(batch, CHANNELS, BINS, rows // side, side, columns // side, side)
    return cells.permute(0, 3, 5, 1, 2, 4, 6).reshape(batch, -1, CHANNELS * BINS * side**2)


def compiled(target: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile `hog_target`, or a function like it, by torch at the first call with images of a size.

    The options keep gradients in registers until they are summed; by default, the compiled code writes them to memory
    first and reads them nine times, which takes twice as long.
    """
    options: dict[str, str | int | bool | Callable[..., Any]] = {
        "realize_opcount_threshold": 10_000,
        "realize_reads_threshold": 1_000,
    }
    return torch.compile(target, dynamic=False, options=options)


def _sobel(images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute gradients, left minus right and top minus bottom: exact integers in float32 (B * 3, H, W)."""
    x = images.contiguous().flatten(0, 1)  # no channel dimension, which the compiler would move to the inside
    x = torch.cat([x[:, 1:2], x, x[:, -2:-1]], dim=1)  # reflected; materialised, so that rows are loaded contiguously
    x = torch.cat([x[..., 1:2], x, x[..., -2:-1]], dim=2).float()
    smooth_rows = x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]
    smooth_columns = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]
    return smooth_rows[..., :-2] - smooth_rows[..., 2:], smooth_columns[:, :-2] - smooth_columns[:, 2:]


def within_bins(gx: Tensor, gy: Tensor) -> list[Tensor]:
    """Return which integer gradients have the orientation `floor(atan2(gx, gy) / pi * 9) mod 9` 0, 1, ..., 8, exactly.

    For a gradient in the half plane of angles [0, pi), where gx is not negative, the angle is at least k * 20 degrees
    if gy <= gx * cot(k * 20 degrees). The rounding of a float32 product cannot change that for Sobel gradients
    (|g| <= 1020: none but those on the axes is nearer to a ray than 9e-5), which the tests check one by one.

    Returns:
        Nine bool tensors of the shape of `gx`, exactly one of which is True at each place.
    """
    gy = torch.where((gx < 0) | ((gx == 0) & (gy < 0)), -gy, gy)
    gx = gx.abs()
    reached = [gy <= gx * (1 / math.tan(k * math.pi / BINS)) for k in range(1, BINS)]
    between = [this & ~following for this, following in pairwise(reached)]
    return [~reached[0], *between, reached[-1]]
