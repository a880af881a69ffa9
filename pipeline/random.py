"""Counter-based randomness: every draw is a pure function of (seed, purpose, sample).

Crops, flips, masks and the sample order must not depend on the rank, batch, thread, restart or device that computes
them, so nothing here has a state. The functions use only operators that NumPy int64 arrays and torch int64 tensors
share, and both wrap modulo 2**64.

Source: the 64-bit finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014), variant 13 of D. Stafford's constants.
"""

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # planning does not need torch
    import torch

Array = TypeVar("Array", NDArray[Any], "torch.Tensor")

# The unsigned constants, written as int64 with the same bits.
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
SECOND = 0x94D049BB133111EB - (1 << 64)


def mix(x: Array) -> Array:
    """Scramble int64 values; a bijection of 64 bits in which every input bit flips half of the output bits."""
    # int64 only has an arithmetic right shift; the masks make it logical.
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * FIRST
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * SECOND
    mixed: Array = x ^ ((x >> 31) & ((1 << 33) - 1))
    return mixed


def derive(key: Array, value: Array | int) -> Array:
    """Return the key of stream `value` under `key`: int64, the broadcast shape of the two."""
    return mix(mix(key + GOLDEN) ^ (mix_int(value) if isinstance(value, int) else mix(value + GOLDEN)))


def mix_int(value: int) -> int:
    """Return `mix(value + golden)` for one Python integer, as a signed 64-bit integer."""
    return int(mix(np.array([(value + GOLDEN + (1 << 63)) % (1 << 64) - (1 << 63)], dtype=np.int64))[0])


def uniform(key: Array) -> Array:
    """Return floats in [0, 1) in steps of 2**-24, which float32 and float64 represent exactly; the shape of `key`.

    NumPy gives float64, torch its default dtype.
    """
    return ((key >> 40) & ((1 << 24) - 1)) / float(1 << 24)
