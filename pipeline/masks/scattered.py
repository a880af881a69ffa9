"""Random masks: every cell is as likely as any other, whatever is masked around it.

Algorithm: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, section 3: a random order of the
cells, of which the first are masked. Here the order is that of numbers which are hashed from the key of the mask.
"""

import math

import torch
from torch import Tensor

from pipeline.random import derive, uniform


def random_masks(keys: Tensor, grid: tuple[int, ...], masked: int) -> Tensor:
    """Draw one mask for every key, on the device of the keys.

    Args:
        keys: int64 (B,); equal keys give equal masks, whatever the batch around them.
        grid: (rows, columns), or (frames, rows, columns).
        masked: cells in each mask.

    Returns:
        bool (B, *grid), True where masked. Of equal numbers, which one mask in 1,000 has, the earlier cell is masked.
    """
    cells = torch.arange(math.prod(grid), device=keys.device)
    drawn = uniform(derive(keys[:, None], cells))
    rank = drawn.argsort(dim=1, stable=True).argsort(dim=1)
    return (rank < masked).view(len(keys), *grid)
