"""From decoded pixels to what is compared: normalised images, masks, targets at masked patches, and the loss."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from model.maskfeat import masked_index
from pipeline.targets.hog import compiled_hog_target, hog_target
from pipeline.targets.masking import block_masks, masked_patches

# The statistics of ImageNet's training images that practically all vision transformers are trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


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
        compile: on a GPU, make images and targets by one kernel, and compile the masks; on a CPU, compile the targets.
    """

    def __init__(self, grid: tuple[int, int], patch: int, ratio: float, dtype: torch.dtype, compile: bool) -> None:
        self.grid, self.patch, self.ratio, self.dtype = grid, patch, ratio, dtype
        self.masked = masked_patches(grid, ratio)
        self._compile = compile
        self._target = compiled_hog_target() if compile else hog_target

    def example(self, images: Tensor, mask_keys: Tensor) -> Example:
        """From uint8 (B, 3, H, W) and int64 (B,) keys, on their device, without waiting for it."""
        fused = self._compile and images.is_cuda
        mask = block_masks(mask_keys, self.grid, self.ratio, compile=fused)
        masked = self.masked * len(images)
        if fused:
            from pipeline.targets.hog_triton import normalised_and_hog  # torch has Triton only where there are GPUs

            pixels, targets = normalised_and_hog(images, mask, masked, self.patch, MEAN, STD, self.dtype)
        else:
            pixels = normalise(images, self.dtype)
            targets = self._target(images, self.patch).flatten(0, 1)[masked_index(mask, masked)]
        return Example(pixels, mask, masked, targets)


def normalise(images: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 (B, 3, H, W) -> (images / 255 - mean) / std in `dtype`, computed in float32."""
    mean, std = _statistics(images.device)
    return ((images.float() - mean) / std).to(dtype)


@cache  # copied to the device once, not at every step
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """MEAN and STD of values in 0..255, float32 (3, 1, 1) each."""
    mean, std = torch.tensor([MEAN, STD], device=device).view(2, 3, 1, 1) * 255
    return mean, std


def squared_errors(predictions: Tensor, targets: Tensor, images: int) -> Tensor:
    """Mean squared error of each image over its masked patches: float32 (images,). Equally many patches in each."""
    return (predictions.float() - targets).square().reshape(images, -1).mean(1)
