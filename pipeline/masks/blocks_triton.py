"""Block masks by one Triton kernel, where `masking` launches some 1,800.

One program makes one mask on a GPU, in registers. It computes what `masking` computes, in the same order and precision:
integers of 64 bits, and floating-point numbers of 64 bits without fused multiply-add. Only the exponential may differ
from that of a CPU, in its last bit. It decides the sides of a block, which are rounded to whole patches: an error of
10^-15 patches changes fewer than one placement in 10^13.

The patches that fill a mask up are those with the highest scores. Scores are not sorted for that, but cut at the
largest number that enough of them reach, which a search finds bit by bit. Of equal scores at the cut, which fewer than
one mask in 1,000 has, the first patches are taken; the reference leaves their order to torch's sort.
"""

import math

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from pipeline.masks.blocks import FILL, MIN_ASPECT, PATIENCE, TRIES, masked_patches, smallest_block
from pipeline.random import FIRST, GOLDEN, SECOND

# As the compiler of kernels needs its constants
_GOLDEN, _FIRST, _SECOND = tl.constexpr(GOLDEN), tl.constexpr(FIRST), tl.constexpr(SECOND)
_LOG_ASPECT = tl.constexpr(math.log(MIN_ASPECT))
_TRIES, _PATIENCE, _FILL = tl.constexpr(TRIES), tl.constexpr(PATIENCE), tl.constexpr(FILL)
_TO_WHOLE = tl.constexpr(1.5 * 2**52)  # added and subtracted, it rounds a float64 half to even


def block_masks(keys: Tensor, grid: tuple[int, int], ratio: float, samples: int = 1) -> Tensor:
    """See `pipeline.masks.blocks.block_masks`, which checks the arguments.

    Args:
        keys: int64 (B,), on a GPU.
        grid: rows and columns of patches.
        ratio: share of masked patches.
        samples: made by one program, a power of two; more than one is for the interpreter.
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


@triton.jit
def _mix(x):  # type: ignore[no-untyped-def]
    """`pipeline.random.mix`."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _FIRST
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _SECOND
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@triton.jit
def _uniform(key, value):  # type: ignore[no-untyped-def]
    """`uniform(derive(...))` of keys that are mixed already: float32."""
    drawn = _mix(key ^ _mix(value + _GOLDEN))
    return ((drawn >> 40) & 0xFFFFFF).to(tl.float32) / 16777216.0


@triton.jit
def _draw(key, stream):  # type: ignore[no-untyped-def]
    """float64 (SAMPLES,)."""
    return _uniform(key, tl.zeros_like(key) + stream).to(tl.float64)


@triton.jit
def _whole(x):  # type: ignore[no-untyped-def]
    return ((x + _TO_WHOLE) - _TO_WHOLE).to(tl.int64)


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
    """The masks of SAMPLES keys: uint8 (SAMPLES, ROWS * COLUMNS), in CELLS lanes each."""
    sample = tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)
    key = tl.load(keys + sample, mask=sample < count, other=0)
    mixed = _mix(key + _GOLDEN)
    cell = tl.arange(0, CELLS)
    row, column = (cell // COLUMNS)[None, :], (cell % COLUMNS)[None, :]
    inside = (cell < ROWS * COLUMNS)[None, :]

    mask = tl.zeros((SAMPLES, CELLS), tl.int32)
    missing = tl.zeros((SAMPLES,), tl.int64) + target
    refused = tl.zeros((SAMPLES,), tl.int64)
    for placement in range(_TRIES):
        area = smallest + _draw(mixed, 4 * placement) * (missing - smallest).to(tl.float64)
        aspect = tl.exp((2 * _draw(mixed, 4 * placement + 1) - 1) * _LOG_ASPECT)
        height, width = _whole(tl.sqrt(area * aspect)), _whole(tl.sqrt(area / aspect))
        top = (_draw(mixed, 4 * placement + 2) * (ROWS - height + 1).to(tl.float64)).to(tl.int64)
        left = (_draw(mixed, 4 * placement + 3) * (COLUMNS - width + 1).to(tl.float64)).to(tl.int64)
        in_rows = (row >= top[:, None]) & (row < (top + height)[:, None])
        in_columns = (column >= left[:, None]) & (column < (left + width)[:, None])
        block = (in_rows & in_columns & inside).to(tl.int32)
        new = tl.sum(block & (1 - mask), 1).to(tl.int64)
        accepted = (height < ROWS) & (width < COLUMNS) & (new > 0) & (new <= missing) & (refused < _PATIENCE)
        mask = mask | (block & accepted.to(tl.int32)[:, None])
        missing = missing - new * accepted.to(tl.int64)
        refused = tl.where(accepted, 0, refused + 1)

    # Fill up: the score is the number of masked neighbours, and a random number for ties, as the bits of a float32
    index = tl.zeros((SAMPLES, CELLS), tl.int32) + cell[None, :]
    below = tl.gather(mask, tl.minimum(index + COLUMNS, CELLS - 1), 1) * (row < ROWS - 1).to(tl.int32)
    above = tl.gather(mask, tl.maximum(index - COLUMNS, 0), 1) * (row > 0).to(tl.int32)
    right = tl.gather(mask, tl.minimum(index + 1, CELLS - 1), 1) * (column < COLUMNS - 1).to(tl.int32)
    left_of = tl.gather(mask, tl.maximum(index - 1, 0), 1) * (column > 0).to(tl.int32)
    stream = _mix(_mix(mixed ^ _mix(tl.zeros_like(key) + (_FILL + _GOLDEN))) + _GOLDEN)
    tie = _uniform(stream[:, None], (tl.zeros((SAMPLES, CELLS), tl.int64) + cell[None, :]))
    score = ((below + above + right + left_of).to(tl.float32) + tie).to(tl.int32, bitcast=True)
    score = tl.where((mask == 0) & inside, score, -1)
    wanted = missing.to(tl.int32)
    cut = tl.zeros((SAMPLES,), tl.int32)
    for bit in range(31):
        higher = cut | (1 << (30 - bit))
        enough = tl.sum((score >= higher[:, None]).to(tl.int32), 1) >= wanted
        cut = tl.where(enough, higher, cut)
    better = (score > cut[:, None]).to(tl.int32)
    equal = (score == cut[:, None]).to(tl.int32)
    first = (tl.cumsum(equal, 1) <= (wanted - tl.sum(better, 1))[:, None]).to(tl.int32)
    mask = mask | better | (equal & first)
    place = masks + sample.to(tl.int64)[:, None] * (ROWS * COLUMNS) + cell[None, :]
    tl.store(place, mask.to(tl.uint8), mask=(sample < count)[:, None] & inside)
