"""Measure the number of directions that features span."""

import math

import torch
from torch import Tensor


def effective_rank(features: Tensor) -> float:
    """Return the effective rank of features: exp of the entropy of their singular values, divided by their sum.

    It is 1 where all features are multiples of one, and their width where all directions are equal (Roy and
    Vetterli 2007, "The effective rank"). As in RankMe (Garrido et al., ICML 2023), features are not centred.

    Args:
        features: (n, width).

    Returns:
        The rank, or nan if a feature is not finite.
    """
    if not features.isfinite().all():
        return math.nan
    values = torch.linalg.svdvals(features.double())
    return float(torch.special.entr(values / values.sum()).sum().exp())
