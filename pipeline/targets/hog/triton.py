"""Compute the normalised input and the HOG target in one pass over the pixels of a GPU, as a Triton kernel.

One program handles one patch, in one warp: first it writes the patch's normalised pixels, in contiguous runs, and then,
if the patch is masked, its HOG. Visible patches, 6 in 10, therefore cost no more than their normalisation. All frames
of a clip are normalised; only some, such as every second one, have a HOG.

A lane of the HOG is a column of pixels of one cell. It moves down the rows of its cell and keeps the last two rows of
its neighbourhood in registers, so that each row is loaded once, and everything up to the sum over the 8 columns stays
within the lane. For the cells of 14-pixel patches, which have 7 columns, every eighth lane is idle. The magnitudes are
accumulated for the nine half-open ranges from each ray on (all angles, those past 20 degrees, past 40, ...): one
comparison and one addition per ray. Differences of neighbouring sums are the histogram. Sums over the same pixels are
equal, bit for bit, so empty bins and flat cells are exactly zero; the rounding error of the others is at most 4e-6 of
the cell's norm (10 roundings of 6e-8, twice, of a sum that is at most 3 norms).

For 256 images of 224 pixels, 40% masked: 39 MB of pixels in, 77 MB of bf16 and 9 MB of targets out, 37 us at the
3.35 TB/s of an H100; and 37 million instructions of its warps, 40 us if every scheduler issued one per cycle. Not
measured on a GPU yet.
"""

from functools import cache

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from pipeline.targets.hog.arithmetic import BINS, CHANNELS, cell_of, check, target_width
from pipeline.targets.hog.kernel import histogram, normalise, place, store

# Constants in the form that the kernel compiler needs
_BINS, _CHANNELS = tl.constexpr(BINS), tl.constexpr(CHANNELS)


def normalised_and_hog(
    images: Tensor,
    mask: Tensor,
    masked: int,
    patch: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: torch.dtype,
    target_dtype: torch.dtype = torch.float32,
    step: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return normalised images or clips, and the HOG of their masked patches, without waiting for the device.

    Args:
        images: uint8 (B, 3, H, W), or clips (B, 3, frames, H, W), on a GPU; H and W multiples of `patch`; channels
            first or last in memory.
        mask: bool (n, H / patch, W / patch), on the same device, True for the masked patches of the n
            images, or of frames 0, step, 2 * step, ... of each clip.
        masked: total number of patches in `mask`.
        patch: pixels per side, a multiple of a cell (`cell_of`).
        mean: means of red, green and blue in 0..1.
        std: their deviations.
        dtype: dtype of the normalised images.
        target_dtype: dtype of the targets.
        step: distance of the described frames of clips.

    Returns:
        (images / 255 - mean) / std in `dtype`, in the shape and the memory format of `images`; and `hog_target` of the
        masked patches, (masked, 108) in `target_dtype` for 16-pixel patches, image by image, or frame by frame, and
        row-major. Both are computed in float32.

    Raises:
        ValueError: wrong dtype or shape.
    """
    check(images[:, :, 0] if images.ndim == 5 else images, patch)
    images, channels_last = in_a_known_format(images)
    row = rows_of_targets(images, mask, step)
    normalised = torch.empty_like(images, dtype=dtype)
    targets = torch.empty((masked, target_width(patch)), dtype=target_dtype, device=images.device)
    _one_patch[(row.numel(),)](
        images,
        row,
        per_run(mean, std, patch, channels_last, images.device),
        normalised,
        targets,
        masked,
        FRAMES=row.shape[1],
        HEIGHT=images.shape[-2],
        WIDTH=images.shape[-1],
        PATCH=patch,
        CELL=cell_of(patch),
        CHANNELS_LAST=channels_last,
        num_warps=1,
    )
    return normalised, targets


def in_a_known_format(images: Tensor) -> tuple[Tensor, bool]:
    """Return images or clips as contiguous memory, and whether channels are last in it."""
    last = torch.channels_last_3d if images.ndim == 5 else torch.channels_last
    channels_last = images.is_contiguous(memory_format=last)
    return (images if channels_last else images.contiguous()), channels_last


def rows_of_targets(images: Tensor, mask: Tensor, step: int) -> Tensor:
    """Return each patch's row of the targets, -1 where it has no target: int32 (B, frames, rows, columns).

    Args:
        images, mask, step: see `normalised_and_hog`.
    """
    described = torch.where(mask, mask.flatten().cumsum(0, dtype=torch.int32).view_as(mask) - 1, -1)
    frames = images.shape[2] if images.ndim == 5 else 1
    row = described.new_full((len(images), frames, *mask.shape[1:]), -1)
    row[:, ::step] = described.view(len(images), -1, *mask.shape[1:])
    return row


@cache  # copied to the device once, not in every step
def per_run(
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    patch: int,
    channels_last: bool,
    device: torch.device,
) -> Tensor:
    """Return factors, then summands, of the pixels in a patch's row, in memory order: float32 (2, 3 * patch)."""
    scale, shift = [1 / (255 * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]
    each = torch.tensor([scale, shift], device=device)
    return each.repeat(1, patch) if channels_last else each.repeat_interleave(patch, dim=1)


@triton.jit  # type: ignore[untyped-decorator]
def _one_patch(  # type: ignore[no-untyped-def]
    images,
    row,
    statistics,
    normalised,
    targets,
    masked,
    FRAMES: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    PATCH: tl.constexpr,
    CELL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    # Strides, in elements, of pixels and of channels
    PIXEL: tl.constexpr = _CHANNELS if CHANNELS_LAST else 1
    PLANE: tl.constexpr = 1 if CHANNELS_LAST else FRAMES * HEIGHT * WIDTH
    program = tl.program_id(0)
    image, top, left = place(program, FRAMES, HEIGHT, WIDTH, PATCH, PIXEL)
    images += image
    normalised += image
    normalise(images, normalised, statistics, top, left, WIDTH, PATCH, PIXEL, PATCH if CHANNELS_LAST else PLANE)
    target = tl.load(row + program)
    if (target >= 0) & (target < masked):
        CELLS: tl.constexpr = (PATCH // CELL) * (PATCH // CELL)
        targets += target.to(tl.int64) * (_CHANNELS * _BINS * CELLS)
        for plane in range(_CHANNELS):
            _describe(
                images + plane * PLANE,
                targets + plane * (_BINS * CELLS),
                top,
                left,
                HEIGHT,
                WIDTH,
                PATCH // CELL,
                CELL,
                PIXEL,
            )


@triton.jit  # type: ignore[untyped-decorator]
def _describe(  # type: ignore[no-untyped-def]
    pixels,
    target,
    top,
    left,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SIDE: tl.constexpr,
    CELL: tl.constexpr,
    PIXEL: tl.constexpr,
):
    """Write the histograms of SIDE x SIDE cells of CELL x CELL pixels of one channel, PIXEL elements apart."""
    lanes: tl.constexpr = triton.next_power_of_2(SIDE * SIDE)
    cell = tl.arange(0, lanes)[:, None]
    y = top + tl.minimum(cell // SIDE, SIDE - 1) * CELL
    x = left + cell % SIDE * CELL
    store(target, histogram(pixels, y, x, lanes, CELL, HEIGHT, WIDTH, PIXEL), cell, SIDE * SIDE, lanes)
