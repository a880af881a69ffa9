"""Functions that the HOG kernels share: the position and the normalised pixels of a patch, and histograms of cells."""

import math

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from pipeline.targets.hog.arithmetic import BINS, CHANNELS

# Constants in the form that the kernel compiler needs
_BINS = tl.constexpr(BINS)
_CHANNELS = tl.constexpr(CHANNELS)
# Cotangents of 20, 40, 60 and 80 degrees; those of 100 to 160 are the same with the other sign.
_COT_20, _COT_40, _COT_60, _COT_80 = (tl.constexpr(1 / math.tan(k * math.pi / BINS)) for k in range(1, 5))


@triton.jit  # type: ignore[untyped-decorator]
def place(  # type: ignore[no-untyped-def]
    program,
    FRAMES: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    PATCH: tl.constexpr,
    PIXEL: tl.constexpr,
):
    """Return the offset in elements of the frame of a program's patch, and the patch's first row and column in it.

    Pixels are PIXEL elements apart. An image is a clip of one frame.
    """
    COLUMNS: tl.constexpr = WIDTH // PATCH
    PATCHES: tl.constexpr = HEIGHT // PATCH * COLUMNS
    frame = program // PATCHES
    clip = (frame // FRAMES).to(tl.int64) * (_CHANNELS * FRAMES * HEIGHT * WIDTH)
    begin = clip + frame % FRAMES * (HEIGHT * WIDTH * PIXEL)
    return begin, program % PATCHES // COLUMNS * PATCH, program % COLUMNS * PATCH


@triton.jit  # type: ignore[untyped-decorator]
def normalise(  # type: ignore[no-untyped-def]
    images,
    normalised,
    statistics,
    top,
    left,
    WIDTH: tl.constexpr,
    PATCH: tl.constexpr,
    PIXEL: tl.constexpr,
    RUN: tl.constexpr,
):
    """Write the normalised pixels of a patch.

    A row of the patch is three runs in memory, RUN elements apart: one per channel, or three consecutive ones.
    """
    y = tl.arange(0, triton.next_power_of_2(PATCH))[:, None]
    along = tl.arange(0, triton.next_power_of_2(PATCH))[None, :]
    inside = (y < PATCH) & (along < PATCH)
    for run in tl.static_range(_CHANNELS):
        scale = tl.load(statistics + run * PATCH + along, mask=along < PATCH)
        shift = tl.load(statistics + (_CHANNELS + run) * PATCH + along, mask=along < PATCH)
        place = run * RUN + ((top + y) * WIDTH + left) * PIXEL + along
        pixels = tl.load(images + place, mask=inside).to(tl.float32)
        tl.store(normalised + place, (pixels * scale + shift).to(normalised.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def histogram(  # type: ignore[no-untyped-def]
    pixels,
    top,
    left,
    LANES: tl.constexpr,
    CELL: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    PIXEL: tl.constexpr,
):
    """Sum the magnitudes of cells of CELL x CELL pixels of one channel, whose pixels are PIXEL elements apart.

    `top` and `left` are the positions of the cells, (LANES, 1). Returns nine sums of that shape.
    """
    COLUMNS: tl.constexpr = triton.next_power_of_2(CELL)
    column = tl.arange(0, COLUMNS)[None, :]
    y = top
    x = left + (column if COLUMNS == CELL else tl.minimum(column, CELL - 1))
    before = _reflected(x - 1, WIDTH) * PIXEL
    after = _reflected(x + 1, WIDTH) * PIXEL
    x *= PIXEL
    slope_above, smooth_above = _row(pixels + _reflected(y - 1, HEIGHT) * (WIDTH * PIXEL), before, x, after)
    slope, smooth = _row(pixels + y * (WIDTH * PIXEL), before, x, after)
    from_0 = tl.full((LANES, COLUMNS), 0.0, tl.float32)
    from_20 = from_0
    from_40 = from_0
    from_60 = from_0
    from_80 = from_0
    from_100 = from_0
    from_120 = from_0
    from_140 = from_0
    from_160 = from_0
    for step in tl.static_range(1, CELL + 1):
        below = pixels + _reflected(y + step, HEIGHT) * (WIDTH * PIXEL)
        slope_below, smooth_below = _row(below, before, x, after)
        gx = slope_above + 2 * slope + slope_below
        gy = smooth_above - smooth_below
        slope_above, smooth_above = slope, smooth
        slope, smooth = slope_below, smooth_below

        # As `arithmetic.within_bins`, but with one comparison and one predicated addition per ray
        magnitude = tl.sqrt(gx * gx + gy * gy)
        if COLUMNS > CELL:
            magnitude = tl.where(column < CELL, magnitude, 0.0)
        gy = tl.where(gx * 2048 + gy < 0, -gy, gy)  # gx < 0, or gx = 0 and gy < 0, since |gy| <= 1020
        gx = tl.abs(gx)
        from_0 += magnitude
        from_20 = tl.where(gy <= gx * _COT_20, from_20 + magnitude, from_20)
        from_40 = tl.where(gy <= gx * _COT_40, from_40 + magnitude, from_40)
        from_60 = tl.where(gy <= gx * _COT_60, from_60 + magnitude, from_60)
        from_80 = tl.where(gy <= gx * _COT_80, from_80 + magnitude, from_80)
        from_100 = tl.where(gy <= -(gx * _COT_80), from_100 + magnitude, from_100)
        from_120 = tl.where(gy <= -(gx * _COT_60), from_120 + magnitude, from_120)
        from_140 = tl.where(gy <= -(gx * _COT_40), from_140 + magnitude, from_140)
        from_160 = tl.where(gy <= -(gx * _COT_20), from_160 + magnitude, from_160)

    return (
        tl.sum(from_0 - from_20, 1, keep_dims=True),
        tl.sum(from_20 - from_40, 1, keep_dims=True),
        tl.sum(from_40 - from_60, 1, keep_dims=True),
        tl.sum(from_60 - from_80, 1, keep_dims=True),
        tl.sum(from_80 - from_100, 1, keep_dims=True),
        tl.sum(from_100 - from_120, 1, keep_dims=True),
        tl.sum(from_120 - from_140, 1, keep_dims=True),
        tl.sum(from_140 - from_160, 1, keep_dims=True),
        tl.sum(from_160, 1, keep_dims=True),
    )


@triton.jit  # type: ignore[untyped-decorator]
def store(target, sums, cell, CELLS: tl.constexpr, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write nine sums of cells, (LANES, 1) each, scaled to unit length: cell c of bin b at `target + b * CELLS + c`."""
    squares = tl.full((LANES, 1), 0.0, tl.float32)
    for b in tl.static_range(_BINS):
        squares += sums[b] * sums[b]
    scale = 1.0 / tl.maximum(tl.sqrt(squares), 1e-12)
    for b in tl.static_range(_BINS):
        tl.store(target + b * CELLS + cell, (sums[b] * scale).to(target.dtype.element_ty), mask=cell < CELLS)


@triton.jit
def _row(row, before, x, after):  # type: ignore[no-untyped-def]
    """Return a row's change across each pixel, left minus right, and its smoothed values: exact integers in float32."""
    left = tl.load(row + before).to(tl.float32)
    right = tl.load(row + after).to(tl.float32)
    return left - right, left + 2 * tl.load(row + x).to(tl.float32) + right


@triton.jit
def _reflected(i, length):  # type: ignore[no-untyped-def]
    """Mirror an index that is one place outside of 0..length - 1 at the outermost pixel."""
    i = tl.abs(i)
    return tl.where(i < length, i, 2 * length - 2 - i)
