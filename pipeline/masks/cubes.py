"""Masks of clips: cubes, which are blocks of space and time; tubes, which are blocks of all frames; whole frames.

Algorithm: the published code of MaskFeat (github.com/facebookresearch/SlowFast, `MaskingGenerator3D` and `_gen_mask`).
A cube is one of BEiT's blocks (see `blocks`) over a random number of frames; unlike that of an image, its area does not
shrink with the number of missing cells. Every mask of cubes covers exactly the same number of cells, so that shapes are
static and all clips have equal weight. Where the published loop gives up (after a hundred consecutive refused
placements; 64 masks in 100, by 2 cells on average), or has not ended after 64 placements, the mask grows at its edges
until it is full.
"""

import math

import torch
from torch import Tensor

from pipeline.masks.blocks import MIN_ASPECT, block_masks
from pipeline.masks.filling import fill
from pipeline.random import derive, uniform

Grid = tuple[int, int, int]  # frames, rows and columns

TRIES = 64  # placements; more hardly bring the masks closer to the published ones
DRAWS = 6  # random numbers per placement
FILL = TRIES * DRAWS  # the stream of randomness after those of the placements


def masked_cells(grid: Grid, ratio: float = 0.4) -> int:
    """Return the cells in every mask of cubes: `ratio` of the grid, rounded; 157 for 8x7x7 at 0.4."""
    return round(math.prod(grid) * ratio)


def masked_frames(frames: int, ratio: float = 0.4) -> int:
    """Return the frames in every mask of frames: `ratio` of them, rounded; 3 of 8 at 0.4."""
    return round(frames * ratio)


def smallest_area(grid: Grid) -> int:
    """Return the cells of a frame that the smallest cube covers: a fifth, 9 of 7x7."""
    return max(1, grid[1] * grid[2] // 5)


def cube_masks(keys: Tensor, grid: Grid = (8, 7, 7), ratio: float = 0.4, compile: bool = False) -> Tensor:
    """Draw one mask per key, on the device of the keys and without a loop over the batch.

    Args:
        keys: int64 (B,); equal keys give equal masks in any batch.
        grid: frames, rows and columns of cells.
        ratio: share of masked cells.
        compile: on a GPU, use one kernel instead of about 740.

    Returns:
        bool (B, frames, rows, columns), True where masked, exactly `masked_cells(grid, ratio)` in each.

    Raises:
        ValueError: the ratio leaves no cell masked, or none visible.
    """
    target = _some_of(masked_cells(grid, ratio), math.prod(grid), grid, ratio)
    if compile and keys.is_cuda:
        from pipeline.masks import cubes_triton  # torch includes Triton only where there are GPUs

        return cubes_triton.cube_masks(keys, grid, ratio)
    cubes = _cubes(uniform(derive(keys[:, None], torch.arange(FILL, device=keys.device))).double(), grid)
    mask = torch.zeros(len(keys), math.prod(grid), dtype=torch.bool, device=keys.device)
    missing = torch.full_like(keys, target)
    for cube in cubes.unbind(1):
        new = (cube & ~mask).sum(1)
        accepted = (new > 0) & (new <= missing)
        mask = mask | (cube & accepted[:, None])
        missing = missing - new * accepted
    return fill(mask.view(-1, *grid), missing, derive(keys, FILL))


def tube_masks(keys: Tensor, grid: Grid = (8, 7, 7), ratio: float = 0.4, compile: bool = False) -> Tensor:
    """Draw one mask per key that is the same in all frames; see `block_masks` for the mask of a frame.

    Returns:
        bool (B, frames, rows, columns).

    Raises:
        ValueError: the ratio leaves no cell masked, or none visible.
    """
    return block_masks(keys, grid[1:], ratio, compile)[:, None].repeat(1, grid[0], 1, 1)


def frame_masks(keys: Tensor, grid: Grid = (8, 7, 7), ratio: float = 0.4) -> Tensor:
    """Draw one mask per key that hides `masked_frames(frames, ratio)` whole frames.

    Returns:
        bool (B, frames, rows, columns).

    Raises:
        ValueError: the ratio leaves no frame masked, or none visible.
    """
    frames = grid[0]
    hidden = _some_of(masked_frames(frames, ratio), frames, grid, ratio)
    order = uniform(derive(keys[:, None], torch.arange(frames, device=keys.device))).argsort(dim=1)
    mask = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :hidden], True)
    return mask[..., None, None].repeat(1, 1, *grid[1:])


def _cubes(draws: Tensor, grid: Grid) -> Tensor:
    """Place a cube for every six random numbers; a cube as high or as wide as a frame is invalid, and left empty.

    Args:
        draws: float64 (B, FILL) in [0, 1): for each placement area, aspect, length, first frame, top and left.
        grid: see `cube_masks`.

    Returns:
        bool (B, TRIES, cells).
    """
    frames, rows, columns = grid
    size, shape, duration, front, down, across = draws.view(-1, TRIES, DRAWS).unbind(2)
    smallest = smallest_area(grid)
    area = smallest + size * (rows * columns - smallest)
    aspect = torch.exp((2 * shape - 1) * math.log(MIN_ASPECT))
    height = torch.sqrt(area * aspect).round().long()
    width = torch.sqrt(area / aspect).round().long()
    fits = (height < rows) & (width < columns)
    in_frames = _reach(front, 1 + (duration * frames).long(), frames) & fits[..., None]
    in_rows, in_columns = _reach(down, height, rows), _reach(across, width, columns)
    return (in_frames[..., :, None, None] & in_rows[..., None, :, None] & in_columns[..., None, None, :]).flatten(2)


def _reach(draw: Tensor, length: Tensor, side: int) -> Tensor:
    """Return which of `side` places a stretch covers whose start is drawn from (...) in [0, 1): bool (..., side)."""
    first = (draw * (side - length + 1)).long()[..., None]
    place = torch.arange(side, device=draw.device)
    return (place >= first) & (place < first + length[..., None])


def _some_of(masked: int, of: int, grid: Grid, ratio: float) -> int:
    """Return how many of `of` are masked. Raises ValueError for none and for all."""
    if not 0 < masked < of:
        sides = "x".join(map(str, grid))
        raise ValueError(f"masking {ratio:g} of a {sides} grid leaves nothing to predict or nothing to see")
    return masked
