"""Mini-batch k-means on the device, over all ranks.

Algorithm: Sculley, "Web-Scale K-Means Clustering", WWW 2010: each batch moves a centroid towards the mean of the
vectors nearest to it, by their share of all its vectors so far. The start is k-means++ (Arthur and Vassilvitskii, SODA
2007) on the first vectors. A centroid that was not the nearest of any vector for a while restarts where vectors fit
worst.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.targets.tokens.words import nearest

IDLE = 20  # batches without a vector after which a centroid restarts
_NUMBERS_AT_ONCE = 2**24


class KMeans:
    """Centroids that are updated by batches of vectors. All ranks call every method together.

    Args:
        first: float32 (n, width), the same on every rank, n at least `words`.
        words: number of centroids.
        seed: seed of the start.
        sum_ranks: sums a tensor over the ranks, in place.
        from_first: returns the argument of rank 0.

    Attributes:
        centroids: float32 (words, width), the same on every rank.
        restarts: number of restarts of centroids.

    Raises:
        ValueError: `first` has fewer distinct vectors than words.
    """

    def __init__(
        self,
        first: Tensor,
        words: int,
        seed: int,
        sum_ranks: Callable[[Tensor], Tensor],
        from_first: Callable[[Tensor], Tensor],
    ) -> None:
        self.centroids = _spread_out(first, words, seed)
        self.restarts = 0
        self._seen = torch.zeros(words, dtype=torch.float64, device=first.device)
        self._idle = torch.zeros(words, dtype=torch.int64, device=first.device)
        self._sum, self._from_first = sum_ranks, from_first

    def update(self, vectors: Tensor) -> None:
        """Move the centroids towards this rank's part of a batch, float32 (n, width)."""
        ids, distances = nearest(vectors, self.centroids)
        sums = self._sum(sums_by_word(vectors, ids, len(self.centroids)))
        counts = sums[:, -1]
        self._seen += counts
        moved = self.centroids + (sums[:, :-1] - counts[:, None] * self.centroids) / self._seen.clamp(min=1)[:, None]
        self.centroids = moved.float()
        self._idle = torch.where(counts > 0, 0, self._idle + 1)
        if (idle := (self._idle >= IDLE).nonzero()[:, 0]).numel():
            self._restart(idle, vectors[distances.topk(min(len(idle), len(vectors))).indices])

    def _restart(self, idle: Tensor, worst: Tensor) -> None:
        """Move idle centroids, given by number, to the worst-fitting vectors of rank 0, (n, width)."""
        places = self._from_first(worst.cpu()).to(worst.device)
        idle = idle[: len(places)]
        self.centroids[idle] = places[: len(idle)]
        self._seen[idle], self._idle[idle] = 0, 0
        self.restarts += len(idle)


def sums_by_word(vectors: Tensor, ids: Tensor, words: int) -> Tensor:
    """Sum the vectors of each word, and count them: float64 (words, width + 1), the count last.

    This uses matrix products, whose result on a GPU does not depend on the order of threads.
    """
    total = torch.zeros(words, vectors.shape[1] + 1, dtype=torch.float64, device=vectors.device)
    rows = max(1, _NUMBERS_AT_ONCE // words)
    for some, of in zip(torch.split(F.pad(vectors, (0, 1), value=1.0), rows), torch.split(ids, rows), strict=True):
        total += (F.one_hot(of, words).to(some.dtype).T @ some).double()
    return total


def _spread_out(vectors: Tensor, words: int, seed: int) -> Tensor:
    """Choose distant vectors at random: (words, width)."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(vectors), (), generator=generator))]
    distance = torch.full((len(vectors),), torch.inf, device=vectors.device)
    for _ in range(words - 1):
        distance = torch.minimum(distance, (vectors - vectors[chosen[-1]]).square().sum(1))
        reach = distance.double().cumsum(0)
        if not reach[-1] > 0:
            raise ValueError(f"{len(chosen)} different patches are too few for {words} words")
        drawn = torch.rand((), dtype=torch.float64, generator=generator).to(reach.device) * reach[-1]
        chosen.append(int(torch.searchsorted(reach, drawn, right=True).clamp(max=len(vectors) - 1)))
    return vectors[chosen].clone()
