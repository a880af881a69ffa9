"""Cube masks in one Triton kernel, where `cubes` launches about 740.

One program makes one mask on a GPU, in registers: the same mask as `cubes`, see `functions_triton`.
"""

import math

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from pipeline.masks.blocks import MIN_ASPECT
from pipeline.masks.cubes import DRAWS, FILL, TRIES, Grid, masked_cells, smallest_area
from pipeline.masks.functions_triton import draw, filled, mixed_keys, whole

# Constants in the form that the kernel compiler needs
_LOG_ASPECT = tl.constexpr(math.log(MIN_ASPECT))
_TRIES, _DRAWS, _FILL = tl.constexpr(TRIES), tl.constexpr(DRAWS), tl.constexpr(FILL)


def cube_masks(keys: Tensor, grid: Grid, ratio: float, samples: int = 1) -> Tensor:
    """See `pipeline.masks.cubes.cube_masks`, which checks the arguments.

    Args:
        keys: int64 (B,), on a GPU.
        grid: frames, rows and columns of cells.
        ratio: share of masked cells.
        samples: masks per program, a power of two; more than one is for the interpreter.
    """
    masks = torch.empty(len(keys), *grid, dtype=torch.bool, device=keys.device)
    cells = triton.next_power_of_2(math.prod(grid))
    _few_masks[(triton.cdiv(len(keys), samples),)](
        keys,
        masks.view(torch.uint8),
        len(keys),
        masked_cells(grid, ratio),
        smallest_area(grid),
        *grid,
        cells,
        samples,
        num_warps=max(1, cells // 512),
        enable_fp_fusion=False,
    )
    return masks


@triton.jit  # type: ignore[untyped-decorator]
def _few_masks(  # type: ignore[no-untyped-def]
    keys,
    masks,
    count,
    target,
    smallest,
    FRAMES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CELLS: tl.constexpr,
    SAMPLES: tl.constexpr,
):
    """Draw the masks of SAMPLES keys: uint8 (SAMPLES, FRAMES * ROWS * COLUMNS), in CELLS lanes each."""
    sample = tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)
    mixed = mixed_keys(tl.load(keys + sample, mask=sample < count, other=0))
    cell = tl.arange(0, CELLS)[None, :]
    frame, row, column = cell // (ROWS * COLUMNS), cell // COLUMNS % ROWS, cell % COLUMNS
    inside = cell < FRAMES * ROWS * COLUMNS

    mask = tl.zeros((SAMPLES, CELLS), tl.int32)
    missing = tl.zeros((SAMPLES,), tl.int64) + target
    for placement in range(_TRIES):
        stream = placement * _DRAWS
        area = smallest + draw(mixed, stream) * (ROWS * COLUMNS - smallest)
        aspect = tl.exp((2 * draw(mixed, stream + 1) - 1) * _LOG_ASPECT)
        length = 1 + (draw(mixed, stream + 2) * FRAMES).to(tl.int64)
        height, width = whole(tl.sqrt(area * aspect)), whole(tl.sqrt(area / aspect))
        in_frames = _reaches(frame, draw(mixed, stream + 3), length, FRAMES)
        in_rows = _reaches(row, draw(mixed, stream + 4), height, ROWS)
        in_columns = _reaches(column, draw(mixed, stream + 5), width, COLUMNS)
        cube = (in_frames & in_rows & in_columns & inside).to(tl.int32)
        new = tl.sum(cube & (1 - mask), 1).to(tl.int64)
        accepted = (height < ROWS) & (width < COLUMNS) & (new > 0) & (new <= missing)
        mask = mask | (cube & accepted.to(tl.int32)[:, None])
        missing = missing - new * accepted.to(tl.int64)

    mask = filled(mask, missing, mixed, _FILL, FRAMES, ROWS, COLUMNS, CELLS, SAMPLES)
    place = masks + sample.to(tl.int64)[:, None] * (FRAMES * ROWS * COLUMNS) + cell
    tl.store(place, mask.to(tl.uint8), mask=(sample < count)[:, None] & inside)


@triton.jit  # type: ignore[untyped-decorator]
def _reaches(place, start, length, SIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return which places (1, CELLS) stretches (SAMPLES,) with starts in [0, 1) cover: bool (SAMPLES, CELLS)."""
    first = (start * (SIDE - length + 1).to(tl.float64)).to(tl.int64)
    return (place >= first[:, None]) & (place < (first + length)[:, None])
