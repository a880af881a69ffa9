"""From decoded pixels to what is compared: normalised inputs, masks, and targets of the masked patches."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.layout import Mask, mask_of_all
from pipeline.masks.masker import Masker
from pipeline.pixels import Statistics, normalise
from pipeline.random import derive
from pipeline.targets.frames import described_frames, mask_of_frames
from pipeline.targets.target import Fused, Predictions, Target


@dataclass(frozen=True)
class Example:
    """A micro-batch as the model takes it, and what it has to predict.

    Attributes:
        inputs: normalised images (B, 3, H, W) or clips (B, 3, frames, H, W), in the model's dtype.
        mask: equally many patches of each view; the views of an input, one or several, are in a row.
        targets: (masked, ...), in the order of `MaskFeat.forward`.
    """

    inputs: Tensor
    mask: Mask
    targets: Tensor


class ExampleMaker:
    """Makes examples, always the same from the same pixels and keys.

    Args:
        predictions: of the model.
        masker: draws the masks.
        target: what is predicted.
        statistics: of the pixels that the model takes.
        dtype: of these inputs.
        fuse: on a GPU, let a target that can do so read each pixel once.
        single_frames: makes those of clips of one frame, where the inputs are these and longer clips; None: the inputs
            are all alike.
    """

    def __init__(
        self,
        predictions: Predictions,
        masker: Masker,
        target: Target,
        statistics: Statistics,
        dtype: torch.dtype,
        fuse: bool,
        single_frames: "ExampleMaker | None" = None,
    ) -> None:
        self.masker, self.target, self.predictions = masker, target, predictions
        self.single_frames = single_frames
        self._statistics, self._dtype = statistics, dtype
        self._fused = target if fuse and isinstance(target, Fused) else None

    def of(self, inputs: Tensor) -> "ExampleMaker":
        """Return the maker of examples of these inputs: of clips of one frame beside longer ones `single_frames`."""
        return self.single_frames if self.single_frames is not None and inputs.shape[2] == 1 else self

    def example(self, inputs: Tensor, keys: Tensor, repeats: int = 1) -> Example:
        """Make an example of uint8 images (B, 3, H, W) or clips (B, 3, frames, H, W), without waiting for the device.

        Args:
            inputs: as the decoder returns them.
            keys: of the masks, int64 (B,).
            repeats: masks of each input, whose patches are described once.
        """
        if repeats == 1:
            mask = self.masker(keys)
            normalised, targets = self._described(inputs, mask)
            return Example(normalised, mask, targets)
        mask = self.masker(derive(keys[:, None], torch.arange(repeats, device=keys.device)).flatten())
        layout = self.predictions.layout
        normalised, targets = self._described(inputs, mask_of_all(len(inputs), layout, inputs.device))
        view, cell = mask.indices // layout.cells, mask.indices % layout.cells
        return Example(normalised, mask, targets[view // repeats * layout.cells + cell])

    def targets(self, inputs: Tensor) -> Tensor:
        """Describe all patches of such inputs: (B, rows, columns, ...), of clips (B, frames, rows, columns, ...)."""
        layout = self.predictions.layout
        _, targets = self._described(inputs, mask_of_all(len(inputs), layout, inputs.device))
        return targets.view(len(inputs), *layout.shape, *targets.shape[1:])

    def _described(self, inputs: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
        of_frames = mask_of_frames(mask, self.predictions)
        if self._fused and inputs.is_cuda:
            return self._fused.inputs_and_targets(inputs, of_frames, self._dtype, self.predictions.patch[0])
        targets = self.target.describe(described_frames(inputs, self.predictions), of_frames)
        return normalise(inputs, self._dtype, self._statistics), targets
