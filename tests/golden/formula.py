"""Weights, images and masks made by formulas, the same on every machine, so that the golden files need not hold them.

Only integers are hashed and only divisions by powers of two follow, so nothing depends on a maths library.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

IMAGES, SIZE, GRID, MASKED = 4, 64, 4, 6  # MASKED patches of GRID x GRID
STEPS, STEPS_PER_EPOCH, BATCH = 20, 2, 2
CLASSES = 10


def hashes(size: int, stream: int) -> Tensor:
    """Return int64 (size,) with 24 random bits each."""
    x = torch.arange(1, size + 1) + (stream << 32)
    x = x * (0x9E3779B97F4A7C15 - (1 << 64))
    x = (x ^ ((x >> 32) & 0xFFFFFFFF)) * (0xD6E8FEB86659FD93 - (1 << 64))
    return (x >> 40) & 0xFFFFFF


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return a float32 tensor for every key, in [-1/16, 1/16); of the norms' scales, around 1."""
    made = {}
    for stream, (key, shape) in enumerate(shapes.items()):
        is_scale = key.endswith("weight") and len(shape) == 1
        made[key] = (hashes(torch.Size(shape).numel(), stream) / 2**27 - 1 / 16 + is_scale).reshape(shape)
    return made


def pictures() -> Tensor:
    """Return uint8 (IMAGES, 3, SIZE, SIZE): noise; stripes; slopes; flat patches and noisy ones.

    The stripes are upright in the first channel and level in the second, so that there every gradient is along an
    axis and all of a HOG but its last step, the scaling to unit length, is arithmetic of integers.
    """
    noise = hashes(IMAGES * 3 * SIZE * SIZE, 1000).reshape(IMAGES, 3, SIZE, SIZE) % 256
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    noise[1, 0], noise[1, 1] = noise[1, 0, :1], noise[1, 1, :, :1]
    noise[2] = torch.stack([x * 2 + y, 255 - y * 3, (x * x + y * 5) // 40]) + noise[2] // 64
    noise[3] = torch.where((x // 16 + y // 16) % 2 == 0, 90, noise[3])
    return noise.clamp(0, 255).to(torch.uint8)


def exact_input(images: Tensor) -> Tensor:
    """Return (images - 128) / 64 in float32: Sobel gradients of these are exact, as those of the integers are."""
    return (images.float() - 128) / 64


def masks() -> Tensor:
    """Return masks, bool (STEPS, IMAGES, GRID, GRID), with MASKED patches in each."""
    order = hashes(STEPS * IMAGES * GRID * GRID, 2000).reshape(STEPS, IMAGES, -1).argsort(-1).argsort(-1)
    return (order < MASKED).reshape(STEPS, IMAGES, GRID, GRID)


def batch(step: int) -> Tensor:
    """Return int64 (BATCH,), the images of a step: the even ones, then the odd ones."""
    return torch.arange(step % 2, IMAGES, 2)
