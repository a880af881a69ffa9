"""Make examples from decoded pixels: normalised inputs, masks, and targets of the masked patches."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.layout import Mask, mask_of_all
from pipeline.augmentation import Augment, augmented
from pipeline.masks.masker import Masker
from pipeline.pixels import Statistics, normalise
from pipeline.random import derive
from pipeline.targets.frames import described_frames, mask_of_frames
from pipeline.targets.target import Fused, Predictions, Target


@dataclass(frozen=True)
class Example:
    """The inputs of the model for a micro-batch, and their targets.

    Attributes:
        inputs: normalised images (B, 3, H, W) or clips (B, 3, frames, H, W), in the model's dtype.
        mask: mask with equally many patches of each view; the views of an input, one or several, are consecutive.
        targets: (masked, ...), in the order of `MaskFeat.forward`.
    """

    inputs: Tensor
    mask: Mask
    targets: Tensor


class ExampleMaker:
    """Makes examples, always the same for the same pixels and keys.

    Args:
        predictions: those of the model.
        masker: draws the masks.
        target: the target.
        statistics: normalisation of the model's inputs.
        dtype: dtype of the model's inputs.
        fuse: on a GPU, let a `Fused` target read each pixel only once.
        single_frames: makes those of clips of one frame, where the inputs are these and longer clips; None: all inputs
        are alike.
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
        """Return the maker for these inputs: `single_frames` for clips of one frame besides longer ones."""
        return self.single_frames if self.single_frames is not None and inputs.shape[2] == 1 else self

    def example(self, inputs: Tensor, keys: Tensor, repeats: int = 1) -> Example:
        """Make an example of uint8 images (B, 3, H, W) or clips (B, 3, frames, H, W), without waiting for the device.

        Args:
            inputs: decoded inputs.
            keys: keys of the masks, int64 (B,).
            repeats: masks per input, whose targets are computed once.
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

    def training_example(self, inputs: Tensor, keys: Tensor, repeats: int, augment: Augment) -> Example:
        """Make the example that a training step learns from: of augmented inputs, whatever their kind; see `example`.

        Args:
            inputs, keys, repeats: see `example`.
            augment: how the inputs are varied.
        """
        varied = augmented(inputs, keys, augment)
        return self.of(varied).example(varied, keys, repeats)

    def targets(self, inputs: Tensor) -> Tensor:
        """Compute the targets of all patches: (B, rows, columns, ...), for clips (B, frames, rows, columns, ...)."""
        layout = self.predictions.layout
        _, targets = self._described(inputs, mask_of_all(len(inputs), layout, inputs.device))
        return targets.view(len(inputs), *layout.shape, *targets.shape[1:])

    def _described(self, inputs: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
        of_frames = mask_of_frames(mask, self.predictions)
        if self._fused and inputs.is_cuda:
            return self._fused.inputs_and_targets(inputs, of_frames, self._dtype, self.predictions.patch[0])
        targets = self.target.describe(described_frames(inputs, self.predictions), of_frames)
        return normalise(inputs, self._dtype, self._statistics), targets
