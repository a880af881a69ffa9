"""Classify by the nearest training images, exactly.

After Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (CVPR 2018), with the
temperature and the votes of DINO's code (eval_knn.py): each of the k nearest by cosine votes exp(cosine / temperature).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.cluster.world import World

_ENTRIES = 2**27  # cosines in memory at once


def nearest(queries: Tensor, bank: Tensor, ids: Tensor, k: int, world: World) -> tuple[Tensor, Tensor]:
    """Find the k nearest rows of all ranks' banks. All ranks call this together with the same queries.

    Args:
        queries: float32 (q, width), the same on all ranks.
        bank: this rank's features, float32 (n, width).
        ids: ids of the bank's rows, int64 (n,).

    Returns:
        Cosines, float32 (q, k) descending, and ids, int64 (q, k); the order of equal cosines is not defined.
    """
    queries, bank = F.normalize(queries, dim=1), F.normalize(bank, dim=1)
    own = min(k, len(bank))
    chunk = max(1, _ENTRIES // max(world.gather(len(bank))))  # the same on all ranks
    found = []
    for start in range(0, len(queries), chunk):
        cosines, rows = (queries[start : start + chunk] @ bank.T).topk(own, dim=1)
        cosines = F.pad(cosines, (0, k - own), value=-torch.inf)
        named = F.pad(ids[rows], (0, k - own))
        everyone, names = (_side_by_side(values, world) for values in (cosines, named))
        best, places = everyone.topk(k, dim=1)
        found.append((best, names.gather(1, places)))
    return torch.cat([best for best, _ in found]), torch.cat([names for _, names in found])


def votes(cosines: Tensor, labels: Tensor, classes: int, temperature: float) -> Tensor:
    """Sum the votes for each class, relative to the nearest one's: (q, k) and int64 (q, k) -> float32 (q, classes)."""
    weights = ((cosines - cosines[:, :1]) / temperature).exp()  # finite also for a low temperature
    return weights.new_zeros(len(weights), classes).scatter_add_(1, labels, weights)


def _side_by_side(values: Tensor, world: World) -> Tensor:
    """Gather (q, k) of every rank -> (q, ranks * k)."""
    return world.rows(values.flatten()).view(world.size, *values.shape).transpose(0, 1).flatten(1)
