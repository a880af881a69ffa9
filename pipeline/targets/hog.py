"""Histograms of oriented gradients: what MaskFeat predicts at every patch. The reference implementation.

Algorithm: Wei et al., "Masked Feature Prediction for Self-Supervised Visual Pre-Training", CVPR 2022, section 3,
with the details of its published code: Sobel gradients of each colour channel, 9 unsigned orientations assigned
hard, magnitudes summed over 8x8-pixel cells, each cell's 9 numbers scaled to unit length, no block normalisation.

One deliberate difference: gradients are taken of the 0..255 integers and not of mean/std-normalised floats. A HOG
does not change under a per-channel affine map, and every integer gradient is exact in float32, so here flat
regions are exactly zero and bins do not depend on the device, where the float version turns rounding noise into
random unit vectors.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

CELL = 8  # pixels a side
BINS = 9
CHANNELS = 3


def target_width(patch: int) -> int:
    """Numbers that describe one patch of `patch` x `patch` pixels: 108 for 16.

    Raises:
        ValueError: the patch is not made of whole cells.
    """
    if patch % CELL:
        raise ValueError(
            f"a patch of {patch} pixels is not made of whole {CELL}-pixel HOG cells: use a multiple of {CELL}"
        )
    return CHANNELS * BINS * (patch // CELL) ** 2


def hog_target(images: Tensor, patch: int = 16) -> Tensor:
    """HOG of every patch.

    Args:
        images: uint8 (B, 3, H, W) in any memory format; H and W multiples of `patch`.
        patch: pixels a side, a multiple of 8.

    Returns:
        float32 (B, patches, 108) for 16-pixel patches, patches row-major; a patch's numbers are ordered
        (channel, bin, cell row, cell column).

    Raises:
        ValueError: wrong dtype or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != CHANNELS:
        raise ValueError(f"expected uint8 images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    width = target_width(patch)
    batch, _, height, breadth = images.shape
    if height % patch or breadth % patch:
        raise ValueError(f"images of {height}x{breadth} pixels do not divide into {patch}-pixel patches")

    gx, gy = _sobel(images)
    magnitude = torch.sqrt(gx * gx + gy * gy)
    orientation = _orientation(gx, gy)

    # Rows before columns: the compiler then runs along rows of pixels, 9 times faster than over cells of 8x8.
    rows_of_pixels = (batch, CHANNELS, height // CELL, CELL, breadth)
    in_rows = torch.stack(
        [torch.where(orientation == b, magnitude, 0.0).reshape(rows_of_pixels).sum(3) for b in range(BINS)],
        dim=2,
    )
    histogram = in_rows.reshape(*in_rows.shape[:-1], breadth // CELL, CELL).sum(
        -1
    )  # (B, 3, 9, rows of cells, columns of cells)
    histogram = F.normalize(histogram, dim=2, eps=1e-12)

    side = patch // CELL
    rows, columns = height // patch, breadth // patch
    histogram = histogram.reshape(batch, CHANNELS, BINS, rows, side, columns, side)
    return histogram.permute(0, 3, 5, 1, 2, 4, 6).reshape(batch, rows * columns, width)


def _sobel(images: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal (left minus right) and vertical (top minus bottom) gradients, float32 (B, 3, H, W), exact integers."""
    x = F.pad(images.contiguous().float(), (1, 1, 1, 1), mode="reflect")
    smooth_rows = x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]
    smooth_columns = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]
    return smooth_rows[..., :-2] - smooth_rows[..., 2:], smooth_columns[:, :, :-2] - smooth_columns[:, :, 2:]


def _orientation(gx: Tensor, gy: Tensor) -> Tensor:
    """`floor(atan2(gx, gy) / pi * 9) mod 9` of integer gradients: exact, as float32 like its arguments.

    Turned into the half plane of angles [0, pi), a gradient reaches bin k when it is not before the ray at
    k * 20 degrees. In float32 the sign of that cross product is right for every pair of Sobel gradients
    (|g| <= 1020; the nearest any comes to a ray is 9e-5), which the tests check one by one.
    """
    flip = torch.where((gx < 0) | ((gx == 0) & (gy < 0)), -1.0, 1.0)
    gx, gy = gx * flip, gy * flip
    orientation = torch.zeros_like(gx)
    for k in range(1, BINS):
        angle = k * math.pi / BINS
        orientation = orientation + (gx * math.cos(angle) - gy * math.sin(angle) >= 0)
    return orientation
