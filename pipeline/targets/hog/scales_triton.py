"""Compute the normalised input and the HOG at four scales in one pass over the pixels of a GPU, as a Triton kernel.

As in `pipeline.targets.hog.triton`, one program handles one patch, in one warp, and a lane is a column of pixels of one
of the 16 finest cells. Their sums, over 2x2 and then over all cells, are the coarser cells of the patch. The coarsest
cells consist of four patches, including visible ones: each program stores the sums of its patch, 27 numbers, from which
a few torch operations compute them. Not measured on a GPU yet.
"""

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional as F

from model.layout import Mask
from pipeline.targets.hog.arithmetic import BINS, CHANNELS
from pipeline.targets.hog.kernel import histogram, normalise, place, store
from pipeline.targets.hog.scales import NUMBERS, SIDES, WIDTH, WIDTHS, check_scales
from pipeline.targets.hog.triton import in_a_known_format, per_run, rows_of_targets

# Constants in the form that the kernel compiler needs
_BINS, _CHANNELS = tl.constexpr(BINS), tl.constexpr(CHANNELS)
_SIDE, _WIDTH = tl.constexpr(SIDES[0]), tl.constexpr(WIDTH)
_HALF, _WHOLE = tl.constexpr(WIDTHS[0]), tl.constexpr(WIDTHS[0] + WIDTHS[1])  # offsets of the scales' numbers


def normalised_and_scales(
    images: Tensor,
    mask: Mask,
    patch: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: torch.dtype,
    step: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return normalised images or clips, and `hog_scales` of their masked patches, without waiting for the device.

    Args:
        images, patch, mean, std, dtype, step: see `pipeline.targets.hog.triton.normalised_and_hog`.
        mask: mask of the images, or of the described frames.

    Returns:
        Normalised inputs as `normalised_and_hog` does, and float32 (masked, 594), in the order of `mask.indices`.

    Raises:
        ValueError: wrong dtype or shape.
    """
    check_scales(images[:, :, 0] if images.ndim == 5 else images, patch)
    images, channels_last = in_a_known_format(images)
    row = rows_of_targets(images, mask.cells, step)
    normalised = torch.empty_like(images, dtype=dtype)
    targets = torch.empty((len(mask.indices), WIDTH), device=images.device)
    sums = torch.empty((*mask.cells.shape, NUMBERS), device=images.device)
    _one_patch[(row.numel(),)](
        images,
        row,
        per_run(mean, std, patch, channels_last, images.device),
        normalised,
        targets,
        sums,
        FRAMES=row.shape[1],
        STEP=step,
        HEIGHT=images.shape[-2],
        WIDTH=images.shape[-1],
        PATCH=patch,
        CHANNELS_LAST=channels_last,
        num_warps=1,
    )
    frames, rows, columns = mask.cells.shape
    squares = sums.view(frames, rows // 2, 2, columns // 2, 2, CHANNELS, BINS).sum((2, 4))
    squares = F.normalize(squares, dim=-1, eps=1e-12).view(-1, NUMBERS)
    patch_row, column = mask.indices // columns, mask.indices % columns  # rows over all frames
    targets[:, WIDTH - NUMBERS :] = squares[patch_row // 2 * (columns // 2) + column // 2]
    return normalised, targets


@triton.jit  # type: ignore[untyped-decorator]
def _one_patch(  # type: ignore[no-untyped-def]
    images,
    row,
    statistics,
    normalised,
    targets,
    sums,
    FRAMES: tl.constexpr,
    STEP: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    PATCH: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    # Strides, in elements, of pixels and of channels
    PIXEL: tl.constexpr = _CHANNELS if CHANNELS_LAST else 1
    PLANE: tl.constexpr = 1 if CHANNELS_LAST else FRAMES * HEIGHT * WIDTH
    PATCHES: tl.constexpr = (HEIGHT // PATCH) * (WIDTH // PATCH)
    program = tl.program_id(0)
    frame = program // PATCHES
    image, top, left = place(program, FRAMES, HEIGHT, WIDTH, PATCH, PIXEL)
    images += image
    normalised += image
    normalise(images, normalised, statistics, top, left, WIDTH, PATCH, PIXEL, PATCH if CHANNELS_LAST else PLANE)
    if frame % FRAMES % STEP == 0:
        DESCRIBED: tl.constexpr = (FRAMES + STEP - 1) // STEP
        described = (frame // FRAMES * DESCRIBED + frame % FRAMES // STEP) * PATCHES + program % PATCHES
        sums += described.to(tl.int64) * (_CHANNELS * _BINS)
        target = tl.load(row + program)
        targets += target.to(tl.int64) * _WIDTH
        for plane in range(_CHANNELS):
            _describe(
                images + plane * PLANE,
                targets,
                sums + plane * _BINS,
                plane,
                target >= 0,
                top,
                left,
                HEIGHT,
                WIDTH,
                PATCH // _SIDE,
                PIXEL,
            )


@triton.jit  # type: ignore[untyped-decorator]
def _describe(  # type: ignore[no-untyped-def]
    pixels,
    target,
    sums,
    plane,
    wanted,
    top,
    left,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CELL: tl.constexpr,
    PIXEL: tl.constexpr,
):
    """Write the sums of one channel of a patch and, if requested, the histograms of its cells.

    The 16 cells are ordered as four squares of 2x2, so that sums of four consecutive ones are the next scale.
    """
    cell = tl.arange(0, 16)[:, None]
    down = cell // 8 * 2 + cell % 4 // 2
    across = cell // 4 % 2 * 2 + cell % 2
    finest = histogram(pixels, top + down * CELL, left + across * CELL, 16, CELL, HEIGHT, WIDTH, PIXEL)
    half = _summed(finest, 4)
    whole = _summed(half, 1)
    for b in tl.static_range(_BINS):
        tl.store(sums + b + tl.zeros((1, 1), tl.int32), whole[b])
    if wanted:
        store(target + plane * (16 * _BINS), finest, down * _SIDE + across, 16, 16)
        store(target + _HALF + plane * (4 * _BINS), half, tl.arange(0, 4)[:, None], 4, 4)
        store(target + _WHOLE + plane * _BINS, whole, tl.zeros((1, 1), tl.int32), 1, 1)


@triton.jit  # type: ignore[untyped-decorator]
def _summed(cells, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sum every four consecutive rows of nine (4 * LANES, 1)."""
    return (
        _by_four(cells[0], LANES),
        _by_four(cells[1], LANES),
        _by_four(cells[2], LANES),
        _by_four(cells[3], LANES),
        _by_four(cells[4], LANES),
        _by_four(cells[5], LANES),
        _by_four(cells[6], LANES),
        _by_four(cells[7], LANES),
        _by_four(cells[8], LANES),
    )


@triton.jit  # type: ignore[untyped-decorator]
def _by_four(x, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.sum(tl.reshape(x, (LANES, 4)), 1, keep_dims=True)
