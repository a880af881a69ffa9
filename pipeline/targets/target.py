"""The interface of a target: what a model predicts at masked patches. registry.py lists the targets."""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from model.layout import Layout, Mask
from pipeline.pixels import IMAGENET, Statistics
from pipeline.targets.settings import TargetSettings


class TargetError(ValueError):
    """A target cannot be built. The message is one line that names the setting and the remedy."""


@dataclass(frozen=True)
class Predictions:
    """The predictions of one input, which a target has to match.

    Attributes:
        layout: their grid.
        patch: frames, rows and columns of pixels of each prediction.
    """

    layout: Layout
    patch: tuple[int, int, int]

    @property
    def side(self) -> int:
        """Pixels along a side of a square patch."""
        return self.patch[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.layout.rows * self.patch[1], self.layout.columns * self.patch[2]

    @property
    def of_a_frame(self) -> "Predictions":
        """The predictions for one frame of a clip, as if it were an image."""
        return Predictions(Layout(1, self.layout.rows, self.layout.columns), (1, *self.patch[1:]))


@dataclass(frozen=True)
class Computing:
    """The precision and place of a target's computation.

    Attributes:
        dtype: precision of the model and of a teacher.
        device: device of the inputs and of a teacher.
        compile: compile the target by torch ...
        compile_teacher: ... and a teacher.
        statistics: normalisation of the model's inputs.
    """

    dtype: torch.dtype
    device: torch.device
    compile: bool = False
    compile_teacher: bool = False
    statistics: Statistics = IMAGENET


class Target(Protocol):
    """A target at masked patches, with the loss of its predictions.

    Targets are tensors whose first dimension is that of patches. Only `losses` needs to know their meaning.

    Attributes:
        label: the target in a title, such as "HOG".
        requires, accepts: names of settings without a default that are required, and that are optional.
        described: the target in a sentence, such as "the HOG descriptors".
        width: number of predicted values per patch.
        identity: everything that decides the targets besides the pixels, "section.key" to JSON value.
    """

    label: ClassVar[str]
    described: ClassVar[str]
    requires: ClassVar[tuple[str, ...]]
    accepts: ClassVar[tuple[str, ...]]
    width: int
    identity: dict[str, Any]

    @staticmethod
    def loss_name(settings: TargetSettings) -> str:
        """Name the loss in a sentence, such as "squared errors"."""
        ...

    @staticmethod
    def output_width(settings: TargetSettings, predictions: Predictions) -> int:
        """Return `width` without reading weights. Raises ValueError for patches that cannot be described."""
        ...

    @staticmethod
    def macs(settings: TargetSettings, predictions: Predictions) -> int:
        """Count the multiply-adds of the target's networks for one input, without reading weights."""
        ...

    @classmethod
    def build(cls, settings: TargetSettings, predictions: Predictions, computing: Computing) -> Self:
        """Build the target. Raises TargetError where a required file cannot be used."""
        ...

    def describe(self, inputs: Tensor, mask: Mask) -> Tensor:
        """Compute the targets of the masked patches, without waiting for the device.

        Args:
            inputs: uint8 (B, 3, H, W): images, or frames of clips from `described_frames`.
            mask: mask with equally many patches of each image, or of each clip.

        Returns:
            (masked, ...), in the order of `mask.indices`.
        """
        ...

    def losses(self, outputs: Tensor, targets: Tensor, batch_size: int) -> Tensor:
        """Return the loss of each input, float32 (batch_size,), from the model's outputs (masked, width)."""
        ...

    def scores(self, outputs: Tensor, targets: Tensor, batch_size: int) -> dict[str, Tensor]:
        """Return further results of validation for each input, by name: float32 (batch_size,) each."""
        ...

    def total(self, targets: Tensor, weights: Tensor) -> Tensor:
        """Sum targets as vectors of `width` numbers: float64 (width,), with weights (masked,). A class is one-hot."""
        ...

    def constant(self, mean: Tensor) -> Tensor:
        """Return the outputs (width,) of the best constant predictor, from the mean of such vectors."""
        ...

    def paint(self, inputs: Tensor, targets: Tensor, outputs: Tensor | None = None) -> Tensor:
        """Render the targets of whole inputs, or the model's outputs in their place, for a person.

        Args:
            inputs: uint8 (B, 3, H, W).
            targets: (B, rows, columns, ...), which decide scale and colours.
            outputs: float32 (B, rows, columns, width); None: render the targets.

        Returns:
            float (B, 1 or 3, height, width) in [0, 1]; height and width are multiples of `rows` and `columns`.
        """
        ...


@runtime_checkable
class Fused(Protocol):
    """A target that reads each pixel once on a GPU, for itself and for the normalised input."""

    def inputs_and_targets(
        self, inputs: Tensor, mask: Mask, dtype: torch.dtype, step: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Return inputs normalised in `dtype`, and the result of `describe` for their frames.

        Args:
            inputs: uint8 images (B, 3, H, W), or clips (B, 3, frames, H, W).
            mask: mask of the images or of the described frames, see `mask_of_frames`.
            dtype: dtype of the normalised inputs.
            step: frames 0, step, 2 * step, ... of clips are described.
        """
        ...


class Regression:
    """The common part of numeric targets: the mean squared error, and the mean as the constant predictor."""

    @staticmethod
    def loss_name(settings: TargetSettings) -> str:
        """See `Target`."""
        return "squared errors"

    @staticmethod
    def macs(settings: TargetSettings, predictions: Predictions) -> int:
        """See `Target`: none."""
        return 0

    def losses(self, outputs: Tensor, targets: Tensor, batch_size: int) -> Tensor:
        """Return the mean squared error of each input over its masked patches: float32 (batch_size,)."""
        return squared_errors(outputs, targets, batch_size)

    def scores(self, outputs: Tensor, targets: Tensor, batch_size: int) -> dict[str, Tensor]:
        """See `Target`: nothing besides the loss."""
        return {}

    def total(self, targets: Tensor, weights: Tensor) -> Tensor:
        """See `Target`."""
        return (targets.double() * weights[:, None]).sum(0)

    def constant(self, mean: Tensor) -> Tensor:
        """See `Target`: the mean itself."""
        return mean


def squared_errors(outputs: Tensor, targets: Tensor, batch_size: int) -> Tensor:
    """Return the mean squared error of each input, float32 (batch_size,). Each has equally many masked patches."""
    return (outputs.float() - targets).square().reshape(batch_size, -1).mean(1)
