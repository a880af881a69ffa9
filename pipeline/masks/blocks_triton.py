"""Block masks in one Triton kernel, where `blocks` launches about 1,800.

One program makes one mask on a GPU, in registers: the same mask as `blocks`, see `functions_triton`.
"""

import math

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from pipeline.masks.blocks import FILL, MIN_ASPECT, PATIENCE, TRIES, masked_patches, smallest_block
from pipeline.masks.functions_triton import draw, filled, mixed_keys, whole

# Constants in the form that the kernel compiler needs
_LOG_ASPECT = tl.constexpr(math.log(MIN_ASPECT))
_TRIES, _PATIENCE, _FILL = tl.constexpr(TRIES), tl.constexpr(PATIENCE), tl.constexpr(FILL)


def block_masks(keys: Tensor, grid: tuple[int, int], ratio: float, samples: int = 1) -> Tensor:
    """See `pipeline.masks.blocks.block_masks`, which checks the arguments.

    Args:
        keys: int64 (B,), on a GPU.
        grid: rows and columns of patches.
        ratio: share of masked patches.
        samples: masks per program, a power of two; more than one is for the interpreter.
    """
    rows, columns = grid
    masks = torch.empty(len(keys), rows, columns, dtype=torch.bool, device=keys.device)
    target, smallest = masked_patches(grid, ratio), smallest_block(grid)
    cells = triton.next_power_of_2(rows * columns)
    _few_masks[(triton.cdiv(len(keys), samples),)](
        keys,
        masks.view(torch.uint8),
        len(keys),
        target,
        smallest,
        rows,
        columns,
        cells,
        samples,
        num_warps=max(1, cells // 256),
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
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CELLS: tl.constexpr,
    SAMPLES: tl.constexpr,
):
    """Draw the masks of SAMPLES keys: uint8 (SAMPLES, ROWS * COLUMNS), in CELLS lanes each."""
    sample = tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)
    mixed = mixed_keys(tl.load(keys + sample, mask=sample < count, other=0))
    cell = tl.arange(0, CELLS)
    row, column = (cell // COLUMNS)[None, :], (cell % COLUMNS)[None, :]
    inside = (cell < ROWS * COLUMNS)[None, :]

    mask = tl.zeros((SAMPLES, CELLS), tl.int32)
    missing = tl.zeros((SAMPLES,), tl.int64) + target
    refused = tl.zeros((SAMPLES,), tl.int64)
    for placement in range(_TRIES):
        area = smallest + draw(mixed, 4 * placement) * (missing - smallest).to(tl.float64)
        aspect = tl.exp((2 * draw(mixed, 4 * placement + 1) - 1) * _LOG_ASPECT)
        height, width = whole(tl.sqrt(area * aspect)), whole(tl.sqrt(area / aspect))
        top = (draw(mixed, 4 * placement + 2) * (ROWS - height + 1).to(tl.float64)).to(tl.int64)
        left = (draw(mixed, 4 * placement + 3) * (COLUMNS - width + 1).to(tl.float64)).to(tl.int64)
        in_rows = (row >= top[:, None]) & (row < (top + height)[:, None])
        in_columns = (column >= left[:, None]) & (column < (left + width)[:, None])
        block = (in_rows & in_columns & inside).to(tl.int32)
        new = tl.sum(block & (1 - mask), 1).to(tl.int64)
        accepted = (height < ROWS) & (width < COLUMNS) & (new > 0) & (new <= missing) & (refused < _PATIENCE)
        mask = mask | (block & accepted.to(tl.int32)[:, None])
        missing = missing - new * accepted.to(tl.int64)
        refused = tl.where(accepted, 0, refused + 1)

    mask = filled(mask, missing, mixed, _FILL, 1, ROWS, COLUMNS, CELLS, SAMPLES)
    place = masks + sample.to(tl.int64)[:, None] * (ROWS * COLUMNS) + cell[None, :]
    tl.store(place, mask.to(tl.uint8), mask=(sample < count)[:, None] & inside)
