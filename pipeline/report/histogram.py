"""Histograms of tensors."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BINS = 64


@dataclass(frozen=True)
class Histogram:
    """The distribution of the finite numbers of a tensor.

    Attributes:
        counts: numbers in each bin, int64 (BINS,).
        edges: limits of the bins, ascending, float64 (BINS + 1,); the first is the minimum, the last the maximum.
        sum, squares: sums of the numbers and of their squares.
    """

    counts: NDArray[np.int64]
    edges: NDArray[np.float64]
    sum: float
    squares: float


def histogram_of(values: Tensor) -> Histogram | None:
    """Return the histogram of a float32 tensor, or None if it does not have a finite number. Waits for the device."""
    finite = values.detach()[values.isfinite()]
    if not finite.numel():
        return None
    low, high = (limit.item() for limit in finite.aminmax())
    if low == high:  # as in numpy.histogram, bins have a width
        low, high = low - 0.5, high + 0.5
    counts = torch.histc(finite, BINS, low, high)
    wide = finite.double()
    return Histogram(
        counts.cpu().numpy().astype(np.int64),
        np.linspace(low, high, BINS + 1),
        wide.sum().item(),
        wide.square().sum().item(),
    )
