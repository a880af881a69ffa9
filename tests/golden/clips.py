"""Clips, masks and weights of video models made by formulas, as in formula.py."""

from collections.abc import Mapping, Sequence

import torch
from golden import formula
from golden.formula import hashes
from torch import Tensor

CLIPS, FRAMES, SIZE, MASKS, MASKED = 2, 8, 96, (4, 3, 3), 14  # MASKED cells of MASKS in each clip
STEPS, STEPS_PER_EPOCH = 10, 2
CLASSES = 10


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return weights as `formula.weights` does; relative positions are in [-1/2, 1/2), which affects attention."""
    made = formula.weights(shapes)
    return {key: value * 8 if "rel_pos" in key else value for key, value in made.items()}


def clips(frames: int = FRAMES, size: int = SIZE) -> Tensor:
    """Return uint8 (CLIPS, 3, frames, size, size): noise that moves, flat squares in it; slopes that move, in noise."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(size), torch.arange(size), indexing="ij")
    field = hashes(3 * (size + 4 * frames) * size, 3000).reshape(3, -1, size) % 256
    made = torch.empty(CLIPS, 3, frames, size, size, dtype=torch.int64)
    for frame in range(frames):
        made[0, :, frame] = field[:, 3 * frame : 3 * frame + size]
    made[0] = torch.where(((x + 5 * t) // 24 + y // 24) % 3 == 0, 100, made[0])
    slopes = torch.stack([x * 2 + y + 7 * t, 255 - y * 2 + 3 * t, (x * x + y * 5) // 40 - t])
    made[1] = slopes + hashes(slopes.numel(), 3001).reshape(slopes.shape) // 2**19
    return made.clamp(0, 255).to(torch.uint8)


def masks() -> Tensor:
    """Return masks, bool (STEPS, CLIPS, *MASKS), with MASKED cells in each."""
    order = hashes(STEPS * CLIPS * 36, 4000).reshape(STEPS, CLIPS, -1).argsort(-1).argsort(-1)
    return (order < MASKED).reshape(STEPS, CLIPS, *MASKS)
