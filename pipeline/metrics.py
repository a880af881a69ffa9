"""Count top-k hits exactly, and name what is measured."""

from torch import Tensor

TOP = (1, 5)
OF_AVERAGE = "_ema"  # ends the names of metrics of the moving average of the weights


def hits(scores: Tensor, labels: Tensor) -> Tensor:
    """Count how often the label is among the best `TOP` scores: float64 (len(TOP), ...), sums over n.

    A label in a tie counts as the last of the tie, and one without a finite score as missed.

    Args:
        scores: (n, ..., classes).
        labels: int64 (n,).
    """
    index = labels.view(-1, *[1] * (scores.ndim - 1)).expand(*scores.shape[:-1], 1)
    own = scores.gather(-1, index)
    place = (scores >= own).sum(-1).masked_fill(~own.isfinite().squeeze(-1), max(TOP) + 1)
    return (place[None] <= place.new_tensor(TOP).view(-1, *[1] * place.ndim)).double().sum(1)
