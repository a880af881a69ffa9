"""Block-wise masks of images.

Algorithm: Bao et al., "BEiT: BERT Pre-Training of Image Transformers", ICLR 2022, algorithm 1, with the settings
of MaskFeat: 40% of a 14x14 grid in blocks of at least 15 patches and aspect ratios in [0.3, 1/0.3]. Two
differences from the published code: blocks may touch every border, and every mask covers exactly the same
number of patches, so that shapes are static. Where the published loop gives up (after ten refusals in a row;
3 masks in 10, by half a patch on average), the mask grows at its edges until it is full.
"""

import math

import torch
from torch import Tensor

from pipeline.masks.filling import fill
from pipeline.random import derive, uniform

MIN_ASPECT = 0.3
MIN_BLOCK = 15 / 196  # share of the grid
PATIENCE = 10  # consecutive refused placements before a mask is filled up
TRIES = 32  # placements in total; the published loop needs more for fewer than 1 mask in 1,000

FILL = TRIES * 4  # the stream of randomness after those of the placements


def masked_patches(grid: tuple[int, int], ratio: float = 0.4) -> int:
    """Return the patches in every mask: `ratio` of the grid, rounded down; 78 for 14x14 at 0.4."""
    return int(grid[0] * grid[1] * ratio)


def smallest_block(grid: tuple[int, int]) -> int:
    """Return the patches of the smallest block while at least as many are missing; 15 for 14x14."""
    return max(1, round(grid[0] * grid[1] * MIN_BLOCK))


def block_masks(keys: Tensor, grid: tuple[int, int] = (14, 14), ratio: float = 0.4, compile: bool = False) -> Tensor:
    """Draw one mask per key, on the device of the keys and without a loop over the batch.

    Args:
        keys: int64 (B,); equal keys give equal masks in any batch.
        grid: rows and columns of patches.
        ratio: share of masked patches.
        compile: on a GPU, use one kernel instead of 1,800.

    Returns:
        bool (B, rows, columns), True where masked, exactly `masked_patches(grid, ratio)` in each.

    Raises:
        ValueError: the ratio leaves no patch masked, or none visible.
    """
    rows, columns = grid
    target = masked_patches(grid, ratio)
    if not 0 < target < rows * columns:
        raise ValueError(f"masking {ratio:g} of a {rows}x{columns} grid leaves nothing to predict or nothing to see")

    if compile and keys.is_cuda:
        from pipeline.masks import blocks_triton  # torch includes Triton only where there are GPUs

        return blocks_triton.block_masks(keys, grid, ratio)
    mask = torch.zeros(len(keys), rows, columns, dtype=torch.bool, device=keys.device)
    missing = torch.full_like(keys, target)
    refused = torch.zeros_like(keys)
    draws = uniform(derive(keys[:, None], torch.arange(TRIES * 4, device=keys.device))).double()
    for draw in draws.reshape(-1, TRIES, 4).permute(1, 2, 0):
        mask, missing, refused = _place(mask, missing, refused, draw)
    return fill(mask, missing, derive(keys, FILL))


def _place(mask: Tensor, missing: Tensor, refused: Tensor, draw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Try to add one block to each mask.

    Args:
        mask: bool (B, rows, columns).
        missing: patches that each mask still needs, int64 (B,).
        refused: consecutive refused placements of each mask, int64 (B,).
        draw: random numbers in [0, 1) for area, aspect, top and left: float64 (4, B).

    Returns:
        the first three, updated.
    """
    rows, columns = mask.shape[1:]
    y = torch.arange(rows, device=mask.device)
    x = torch.arange(columns, device=mask.device)
    smallest = smallest_block((rows, columns))
    size, shape, down, across = draw
    area = smallest + size * (missing - smallest)
    aspect = torch.exp((2 * shape - 1) * math.log(MIN_ASPECT))
    height = torch.sqrt(area * aspect).round().long()
    width = torch.sqrt(area / aspect).round().long()
    top = (down * (rows - height + 1)).long()
    left = (across * (columns - width + 1)).long()
    in_rows = (y >= top[:, None]) & (y < (top + height)[:, None])
    in_columns = (x >= left[:, None]) & (x < (left + width)[:, None])
    block = in_rows[:, :, None] & in_columns[:, None, :]

    new = (block & ~mask).sum((1, 2))
    accepted = (height < rows) & (width < columns) & (new > 0) & (new <= missing) & (refused < PATIENCE)
    return mask | (block & accepted[:, None, None]), missing - new * accepted, torch.where(accepted, 0, refused + 1)
