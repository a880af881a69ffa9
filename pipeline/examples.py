"""From decoded pixels to what is compared: normalised inputs, masks, and targets of the masked patches."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.layout import Layout, Mask, mask_of_all
from pipeline.masks.masker import Masker
from pipeline.pixels import Statistics, normalise
from pipeline.targets.target import Fused, Target


@dataclass(frozen=True)
class Example:
    """A micro-batch as the model takes it, and what it has to predict.

    Attributes:
        inputs: normalised, (B, 3, H, W) in the model's dtype.
        mask: equally many patches of each input.
        targets: (masked, ...), in the order of `MaskFeat.forward`.
    """

    inputs: Tensor
    mask: Mask
    targets: Tensor


class ExampleMaker:
    """Makes examples, always the same from the same pixels and keys.

    Args:
        predictions: grid of the model's predictions.
        masker: draws the masks.
        target: what is predicted.
        statistics: of the pixels that the model takes.
        dtype: of these inputs.
        fuse: on a GPU, let a target that can do so read each pixel once.
    """

    def __init__(
        self,
        predictions: Layout,
        masker: Masker,
        target: Target,
        statistics: Statistics,
        dtype: torch.dtype,
        fuse: bool,
    ) -> None:
        self.masker, self.target = masker, target
        self._predictions, self._statistics, self._dtype = predictions, statistics, dtype
        self._fused = target if fuse and isinstance(target, Fused) else None

    def example(self, inputs: Tensor, keys: Tensor) -> Example:
        """From uint8 (B, 3, H, W) and int64 (B,) keys, on their device, without waiting for it."""
        mask = self.masker(keys)
        normalised, targets = self._described(inputs, mask)
        return Example(normalised, mask, targets)

    def targets(self, inputs: Tensor) -> Tensor:
        """Describe all patches of uint8 (B, 3, H, W): (B, rows, columns, ...)."""
        _, targets = self._described(inputs, mask_of_all(len(inputs), self._predictions, inputs.device))
        return targets.view(len(inputs), *self._predictions.shape, *targets.shape[1:])

    def _described(self, inputs: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
        if self._fused and inputs.is_cuda:
            return self._fused.inputs_and_targets(inputs, mask, self._dtype)
        return normalise(inputs, self._dtype, self._statistics), self.target.describe(inputs, mask)
