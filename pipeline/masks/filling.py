"""Fill masks up to an exact size, at their edges."""

import torch
from torch import Tensor

from pipeline.random import derive, uniform


def fill(mask: Tensor, missing: Tensor, keys: Tensor) -> Tensor:
    """Add cells to each mask: those with the most masked neighbours, ties at random.

    Args:
        mask: bool (B, rows, columns) or (B, frames, rows, columns).
        missing: cells that each mask still needs, int64 (B,).
        keys: seeds of the ties, int64 (B,).

    Returns:
        The filled masks, in the shape of `mask`.
    """
    hidden = mask.float()
    neighbours = torch.zeros_like(hidden)
    for dimension in range(1, mask.ndim):
        pairs = mask.shape[dimension] - 1
        neighbours.narrow(dimension, 1, pairs).add_(hidden.narrow(dimension, 0, pairs))
        neighbours.narrow(dimension, 0, pairs).add_(hidden.narrow(dimension, 1, pairs))
    places = torch.arange(neighbours[0].numel(), device=keys.device)
    tie = uniform(derive(keys[:, None], places))
    score = (neighbours.flatten(1) + tie).masked_fill(mask.flatten(1), -1.0)
    rank = score.argsort(dim=1, descending=True).argsort(dim=1)
    return mask | (rank < missing[:, None]).reshape(mask.shape)
