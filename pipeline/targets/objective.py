"""From decoded pixels to what is compared: normalised images, masks, targets at masked patches, and the loss."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from model.maskfeat import masked_index
from pipeline.targets.glyphs import strokes
from pipeline.targets.hog import compiled_hog_target, hog_target, target_width
from pipeline.targets.masking import block_masks, masked_patches

# The statistics of ImageNet's training images that practically all vision transformers are trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

Channels = tuple[float, float, float]


class Target(Protocol):
    """What is predicted at masked patches: `Hog` here, `pixels.Pixels` or `features.Features`.

    Attributes:
        name: for people.
        width: numbers that the model predicts for a patch.
        identity: all that decides the targets besides the pixels, "section.key" to JSON value.
    """

    name: str
    width: int
    identity: dict[str, Any]

    def make(self, images: Tensor, mask: Tensor, masked: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Normalised images in `dtype` and the targets of their masked patches, without waiting for the device.

        Args:
            images: uint8 (B, 3, H, W).
            mask: bool (B, rows, columns).
            masked: how many patches `mask` covers in all.
            dtype: of the images that the model takes.

        Returns:
            (B, 3, H, W), and (masked, ...), image by image and row-major.
        """
        ...

    def errors(self, predictions: Tensor, targets: Tensor, images: int) -> Tensor:
        """The loss of each image: float32 (images,), from predictions (masked, width), equally many of each image."""
        ...

    def paint(self, images: Tensor, targets: Tensor, values: Tensor) -> Tensor:
        """What a person sees of `values`, which may be predictions, in the place of the `targets` of the same images.

        Args:
            images: uint8 (B, 3, H, W).
            targets: (B, rows, columns, width).
            values: likewise, float32.

        Returns:
            [0, 1] float (B, 1 or 3, height, width): both a multiple of `rows` and `columns`.
        """
        ...


@dataclass(frozen=True)
class Example:
    """What one micro-batch of B images asks of the model.

    Attributes:
        images: normalised, (B, 3, H, W) in the model's dtype.
        mask: bool (B, rows, columns), equally many True in each.
        masked: patches that `mask` covers in all.
        targets: float32 (masked, numbers a patch), in the order of `MaskFeat.forward`.
    """

    images: Tensor
    mask: Tensor
    masked: int
    targets: Tensor


class Objective:
    """Makes examples, always the same from the same pixels and mask keys.

    Args:
        grid: rows and columns of patches.
        patch: side of a patch in pixels.
        ratio: share of masked patches.
        dtype: of the images that the model takes.
        compile: on a GPU, make images and HOG by one kernel, and the masks by another; on a CPU, compile the HOG.
        target: what is predicted; None: HOG.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        patch: int,
        ratio: float,
        dtype: torch.dtype,
        compile: bool,
        target: Target | None = None,
    ) -> None:
        self.grid, self.patch, self.ratio, self.dtype = grid, patch, ratio, dtype
        self.masked = masked_patches(grid, ratio)
        self.target = target or Hog(patch, compile)
        self._compile = compile

    def example(self, images: Tensor, mask_keys: Tensor) -> Example:
        """From uint8 (B, 3, H, W) and int64 (B,) keys, on their device, without waiting for it."""
        mask = block_masks(mask_keys, self.grid, self.ratio, compile=self._compile and images.is_cuda)
        masked = self.masked * len(images)
        pixels, targets = self.target.make(images, mask, masked, self.dtype)
        return Example(pixels, mask, masked, targets)

    def targets(self, images: Tensor) -> Tensor:
        """The targets of all patches of uint8 (B, 3, H, W): (B, rows, columns, ...)."""
        everything = torch.ones(len(images), *self.grid, dtype=torch.bool, device=images.device)
        _, targets = self.target.make(images, everything, everything.numel(), self.dtype)
        return targets.view(*everything.shape, *targets.shape[1:])


class Hog:
    """Histograms of oriented gradients, the paper's choice.

    Args:
        patch: side of a patch in pixels, a multiple of 8.
        compile: as in `Objective`.
    """

    name = "HOG"

    def __init__(self, patch: int, compile: bool) -> None:
        self.width = target_width(patch)
        self.identity: dict[str, Any] = {"target.kind": "hog"}
        self._patch, self._compile = patch, compile
        self._target = compiled_hog_target() if compile else hog_target

    def make(self, images: Tensor, mask: Tensor, masked: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """See `Target`; targets are float32 (masked, width)."""
        if self._compile and images.is_cuda:
            from pipeline.targets.hog_triton import normalised_and_hog  # torch has Triton only where there are GPUs

            return normalised_and_hog(images, mask, masked, self._patch, MEAN, STD, dtype)
        targets = self._target(images, self._patch).flatten(0, 1)[masked_index(mask, masked)]
        return normalise(images, dtype), targets

    def errors(self, predictions: Tensor, targets: Tensor, images: int) -> Tensor:
        """Mean squared error."""
        return squared_errors(predictions, targets, images)

    def paint(self, images: Tensor, targets: Tensor, values: Tensor) -> Tensor:
        """Strokes along the edges."""
        return strokes(values)


def normalise(images: Tensor, dtype: torch.dtype, mean: Channels = MEAN, std: Channels = STD) -> Tensor:
    """uint8 (B, 3, H, W) -> (images / 255 - mean) / std in `dtype`, computed in float32."""
    shift, scale = _statistics(mean, std, images.device)
    return ((images.float() - shift) / scale).to(dtype)


@cache  # copied to the device once, not at every step
def _statistics(mean: Channels, std: Channels, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation of values in 0..255, float32 (3, 1, 1) each."""
    shift, scale = torch.tensor([mean, std], device=device).view(2, 3, 1, 1) * 255
    return shift, scale


def squared_errors(predictions: Tensor, targets: Tensor, images: int) -> Tensor:
    """Mean squared error of each image over its masked patches: float32 (images,). Equally many patches in each."""
    return (predictions.float() - targets).square().reshape(images, -1).mean(1)
