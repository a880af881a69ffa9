"""Histograms of oriented gradients as a target."""

from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from model.layout import Mask
from pipeline.pixels import IMAGENET, Statistics
from pipeline.targets.hog.arithmetic import cell_of, compiled, hog_target, target_width
from pipeline.targets.hog.glyphs import strokes
from pipeline.targets.settings import TargetSettings
from pipeline.targets.target import Computing, Predictions, Regression


class Hog(Regression):
    """Histograms of oriented gradients, the paper's target. See `Target`.

    Args:
        patch: side of a patch in pixels, a multiple of a cell (`cell_of`).
        compile: compile the histograms by torch.
        statistics: normalisation of the model's inputs.
    """

    label: ClassVar[str] = "HOG"
    described: ClassVar[str] = "the HOG descriptors"
    requires: ClassVar[tuple[str, ...]] = ()
    accepts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, patch: int, compile: bool, statistics: Statistics = IMAGENET) -> None:
        self.width = target_width(patch)
        self.identity: dict[str, Any] = {"target.kind": "hog"}
        self._patch, self._statistics = patch, statistics
        self._target = compiled(hog_target) if compile else hog_target

    @staticmethod
    def output_width(settings: TargetSettings, predictions: Predictions) -> int:
        """See `Target`."""
        return target_width(predictions.side)

    @classmethod
    def build(cls, settings: TargetSettings, predictions: Predictions, computing: Computing) -> Self:
        """See `Target`."""
        return cls(predictions.side, computing.compile, computing.statistics)

    def describe(self, inputs: Tensor, mask: Mask) -> Tensor:
        """See `Target`; targets are float32 (masked, width)."""
        return self._target(inputs, self._patch).flatten(0, 1)[mask.indices]

    def inputs_and_targets(
        self, inputs: Tensor, mask: Mask, dtype: torch.dtype, step: int = 1
    ) -> tuple[Tensor, Tensor]:
        """See `Fused`."""
        from pipeline.targets.hog.triton import normalised_and_hog  # torch includes Triton only where there are GPUs

        masked = len(mask.indices)
        return normalised_and_hog(inputs, mask.cells, masked, self._patch, *self._statistics, dtype, step=step)

    def paint(self, inputs: Tensor, targets: Tensor, outputs: Tensor | None = None) -> Tensor:
        """See `Target`: strokes along the edges."""
        return strokes(targets if outputs is None else outputs, cell_of(self._patch))
