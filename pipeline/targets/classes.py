"""The common part of targets that are classes: cross entropy, frequencies as the constant predictor, and colours."""

import colorsys
import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pipeline.targets.settings import TargetSettings

_NUMBERS_AT_ONCE = 2**24  # float32 logits: 64 MiB
_UNSEEN = 1e-4  # share of the constant predictor that is spread evenly, so that no class has probability 0
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


class Classes:
    """Targets that are distributions over a few of `width` classes.

    Targets are float32 (masked, k, 2): for each patch k classes, and the share of each; the shares sum to 1.
    A class below 2^24 is exact in float32.
    """

    width: int

    @staticmethod
    def loss_name(settings: TargetSettings) -> str:
        """See `Target`."""
        return "cross entropies"

    def losses(self, outputs: Tensor, targets: Tensor, batch_size: int) -> Tensor:
        """Return the mean cross entropy of each input, float32 (batch_size,).

        Logits are converted to float32 in slices, which are recomputed in the backward pass: memory holds one slice,
        however many classes there are.
        """
        rows = max(1, _NUMBERS_AT_ONCE // self.width)
        slices = zip(torch.split(outputs, rows), torch.split(targets, rows), strict=True)
        losses = [checkpoint(_cross_entropy, *pair, use_reentrant=False, preserve_rng_state=False) for pair in slices]
        return torch.cat(losses).reshape(batch_size, -1).mean(1)

    def scores(self, outputs: Tensor, targets: Tensor, batch_size: int) -> dict[str, Tensor]:
        """See `Target`: the share of patches whose likeliest class is the right one."""
        right = outputs.argmax(1) == targets[:, 0, 0]
        return {"top1": right.float().reshape(batch_size, -1).mean(1)}

    def total(self, targets: Tensor, weights: Tensor) -> Tensor:
        """See `Target`."""
        classes, shares = targets[..., 0].long(), targets[..., 1].double()
        sums = torch.zeros(self.width, dtype=torch.float64, device=targets.device)
        return sums.index_add_(0, classes.flatten(), (shares * weights[:, None]).flatten())

    def constant(self, mean: Tensor) -> Tensor:
        """See `Target`: the logarithms of the frequencies."""
        return ((1 - _UNSEEN) * mean + _UNSEEN / self.width).log()

    def paint(self, inputs: Tensor, targets: Tensor, outputs: Tensor | None = None) -> Tensor:
        """See `Target`: one colour per class."""
        return palette(self.width).to(inputs.device)[self._likeliest(targets, outputs)].permute(0, 3, 1, 2)

    def _likeliest(self, targets: Tensor, outputs: Tensor | None) -> Tensor:
        """Return the displayed class of each patch: int64 (B, rows, columns)."""
        return targets[..., 0, 0].long() if outputs is None else outputs.argmax(-1)


def as_targets(classes: Tensor) -> Tensor:
    """Make targets of one class per patch, from int64 (masked,): float32 (masked, 1, 2)."""
    return torch.stack([classes.float(), torch.ones_like(classes, dtype=torch.float32)], dim=-1)[:, None]


@cache
def palette(classes: int) -> Tensor:
    """Return distinct colours for neighbouring classes, float32 (classes, 3): hues a golden ratio apart."""
    saturations, values = (0.45, 0.7, 0.95), (0.95, 0.75, 0.55)
    colours = [
        colorsys.hsv_to_rgb(number * _GOLDEN_RATIO % 1, saturations[number % 3], values[number // 3 % 3])
        for number in range(classes)
    ]
    return torch.tensor(colours, dtype=torch.float32)


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute cross entropies, float32 (n,), from (n, classes) and (n, k, 2)."""
    chosen = F.log_softmax(outputs.float(), dim=1).gather(1, targets[..., 0].long())
    return -(chosen * targets[..., 1]).sum(1)
