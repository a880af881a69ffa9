"""Counter-based randomness: every draw is a pure function of (seed, what it is for, which sample).

Crops, flips, masks and the sample order must be the same whatever the rank, batch, thread, restart or device
that asks for them, so nothing here has a state. The functions use only operators that NumPy int64 arrays and
torch int64 tensors share, and wrap modulo 2**64 alike in both.

Source: the 64-bit finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014), variant 13 of D. Stafford's constants.
"""

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # planning needs no torch
    import torch

Array = TypeVar("Array", NDArray[Any], "torch.Tensor")

# The unsigned constants written as the int64 of the same bits.
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
SECOND = 0x94D049BB133111EB - (1 << 64)


def mix(x: Array) -> Array:
    """Scramble int64 values; a bijection of 64 bits in which every input bit moves half of the output bits."""
    # int64 has only an arithmetic right shift: the masks make it a logical one.
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * FIRST
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * SECOND
    mixed: Array = x ^ ((x >> 31) & ((1 << 33) - 1))
    return mixed


def derive(key: Array, value: Array | int) -> Array:
    """The key of stream `value` under `key`: int64, the broadcast shape of the two."""
    return mix(mix(key + GOLDEN) ^ (mix_int(value) if isinstance(value, int) else mix(value + GOLDEN)))


def mix_int(value: int) -> int:
    """`mix(value + golden)` for one Python integer, as a signed 64-bit integer."""
    return int(mix(np.array([(value + GOLDEN + (1 << 63)) % (1 << 64) - (1 << 63)], dtype=np.int64))[0])


def uniform(key: Array) -> Array:
    """Floats in [0, 1) in steps of 2**-24, which float32 and float64 both hold exactly; the shape of `key`.

    NumPy gives float64, torch its default dtype.
    """
    return ((key >> 40) & ((1 << 24) - 1)) / float(1 << 24)
