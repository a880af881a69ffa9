"""Functions that the mask kernels share: random numbers, and filling masks up to an exact size.

The kernels make the masks of the reference implementations, in the same order and precision: 64-bit integers, and
64-bit floating-point numbers without fused multiply-add. Only the exponential may differ from that of a CPU, in its
last bit. It decides the sides of a block, which are rounded to whole cells: an error of 10^-15 cells changes fewer
than one placement in 10^13.
"""

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from pipeline.random import FIRST, GOLDEN, SECOND

# Constants in the form that the kernel compiler needs
_GOLDEN, _FIRST, _SECOND = tl.constexpr(GOLDEN), tl.constexpr(FIRST), tl.constexpr(SECOND)
_TO_WHOLE = tl.constexpr(1.5 * 2**52)  # adding and subtracting it rounds a float64, half to even


@triton.jit
def mixed_keys(key):  # type: ignore[no-untyped-def]
    """Prepare keys, int64, for `draw` and `filled`."""
    return _mix(key + _GOLDEN)


@triton.jit
def _mix(x):  # type: ignore[no-untyped-def]
    """Compute `pipeline.random.mix`."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _FIRST
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _SECOND
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@triton.jit
def _uniform(mixed, value):  # type: ignore[no-untyped-def]
    """Compute `uniform(derive(...))`: float32."""
    drawn = _mix(mixed ^ _mix(value + _GOLDEN))
    return ((drawn >> 40) & 0xFFFFFF).to(tl.float32) / 16777216.0


@triton.jit
def draw(mixed, stream):  # type: ignore[no-untyped-def]
    """Draw a number in [0, 1) from a stream for every key: float64 (SAMPLES,)."""
    return _uniform(mixed, tl.zeros_like(mixed) + stream).to(tl.float64)


@triton.jit
def whole(x):  # type: ignore[no-untyped-def]
    """Round float64 to int64, half to even."""
    return ((x + _TO_WHOLE) - _TO_WHOLE).to(tl.int64)


@triton.jit  # type: ignore[untyped-decorator]
def filled(  # type: ignore[no-untyped-def]
    mask,
    missing,
    mixed,
    stream,
    FRAMES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CELLS: tl.constexpr,
    SAMPLES: tl.constexpr,
):
    """Compute `pipeline.masks.filling.fill`, with ties drawn from `stream`.

    Scores are not sorted, but cut at the largest number that enough of them reach, found by bisection over bits. Among
    equal scores at the cut, which occur in fewer than one mask in 1,000, the first cells are taken; the reference
    leaves their order to torch's sort.

    Args:
        mask: int32 (SAMPLES, CELLS), 1 where masked; the first FRAMES * ROWS * COLUMNS lanes are cells.
        missing: int64 (SAMPLES,).
        mixed: result of `mixed_keys`, int64 (SAMPLES,).

    Returns:
        int32 (SAMPLES, CELLS).
    """
    cell = tl.arange(0, CELLS)[None, :]
    frame, row, column = cell // (ROWS * COLUMNS), cell // COLUMNS % ROWS, cell % COLUMNS
    index = tl.zeros((SAMPLES, CELLS), tl.int32) + cell
    neighbours = _neighbour(mask, index, COLUMNS, row < ROWS - 1, CELLS)
    neighbours += _neighbour(mask, index, -COLUMNS, row > 0, CELLS)
    neighbours += _neighbour(mask, index, 1, column < COLUMNS - 1, CELLS)
    neighbours += _neighbour(mask, index, -1, column > 0, CELLS)
    if FRAMES > 1:
        neighbours += _neighbour(mask, index, ROWS * COLUMNS, frame < FRAMES - 1, CELLS)
        neighbours += _neighbour(mask, index, -ROWS * COLUMNS, frame > 0, CELLS)
    ties = _mix(_mix(mixed ^ _mix(tl.zeros_like(mixed) + (stream + _GOLDEN))) + _GOLDEN)
    tie = _uniform(ties[:, None], (tl.zeros((SAMPLES, CELLS), tl.int64) + cell))
    score = (neighbours.to(tl.float32) + tie).to(tl.int32, bitcast=True)  # these bits have the order of the floats
    score = tl.where((mask == 0) & (cell < FRAMES * ROWS * COLUMNS), score, -1)
    wanted = missing.to(tl.int32)
    cut = tl.zeros((SAMPLES,), tl.int32)
    for bit in range(31):
        higher = cut | (1 << (30 - bit))
        enough = tl.sum((score >= higher[:, None]).to(tl.int32), 1) >= wanted
        cut = tl.where(enough, higher, cut)
    better = (score > cut[:, None]).to(tl.int32)
    equal = (score == cut[:, None]).to(tl.int32)
    first = (tl.cumsum(equal, 1) <= (wanted - tl.sum(better, 1))[:, None]).to(tl.int32)
    return mask | better | (equal & first)


@triton.jit  # type: ignore[untyped-decorator]
def _neighbour(mask, index, step, exists, CELLS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the mask shifted by `step` cells, 0 where there is no such cell: int32 (SAMPLES, CELLS)."""
    there = tl.minimum(tl.maximum(index + step, 0), CELLS - 1)
    return tl.gather(mask, there, 1) * exists.to(tl.int32)
