"""Random masks: every cell is equally likely, independent of its neighbours.

Algorithm: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, section 3: a random order of the
cells, of which the first are masked. Here the order is that of numbers hashed from the mask's key.
"""

import math

import torch
from torch import Tensor

from pipeline.random import derive, uniform


def random_masks(keys: Tensor, grid: tuple[int, ...], masked: int) -> Tensor:
    """Draw one mask per key, on the device of the keys.

    Args:
        keys: int64 (B,); equal keys give equal masks in any batch.
        grid: (rows, columns), or (frames, rows, columns).
        masked: cells in each mask.

    Returns:
        bool (B, *grid), True where masked. Among equal numbers, as in one mask in 1,000, the earlier cell is masked.
    """
    cells = torch.arange(math.prod(grid), device=keys.device)
    drawn = uniform(derive(keys[:, None], cells))
    rank = drawn.argsort(dim=1, stable=True).argsort(dim=1)
    return (rank < masked).view(len(keys), *grid)
