"""HOG targets and masks."""

import argparse
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.racing import Rates, race
from pipeline.targets.hog import compiled_hog_target, hog_target
from pipeline.targets.masking import block_masks, masked_patches
from pipeline.targets.objective import MEAN, STD, normalise

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


def hog(arguments: argparse.Namespace) -> Rates:
    """Images a second: targets alone on a CPU, in batches of 32; on a GPU with the normalised images, in 256."""
    size = arguments.size
    if GPU:
        images = torch.randint(0, 256, (256, size, size, 3), dtype=torch.uint8, device=DEVICE).permute(0, 3, 1, 2)
        return race(_on_gpu(images))
    images = torch.randint(0, 256, (32, 3, size, size), dtype=torch.uint8)

    def with_skimage() -> int:
        from skimage.feature import hog as skimage_hog

        for image in images[:8].permute(0, 2, 3, 1).numpy():
            for channel in range(3):
                skimage_hog(image[..., channel], 9, (8, 8), (1, 1), feature_vector=False)
        return 8

    return race(
        {
            "compiled": _times(1, compiled_hog_target(), images),
            "eager": _times(1, hog_target, images),
            "official definition": _times(1, official_hog, images),
            "skimage.feature.hog": with_skimage,
        }
    )


def _on_gpu(images: Tensor) -> dict[str, Callable[[], int]]:
    from pipeline.targets.hog_triton import normalised_and_hog

    grid = (images.shape[2] // 16, images.shape[3] // 16)
    every = torch.ones(len(images), *grid, dtype=torch.bool, device=DEVICE)
    masks = block_masks(torch.arange(len(images), device=DEVICE), grid)

    def fused(images: Tensor, mask: Tensor, masked: int) -> tuple[Tensor, Tensor]:
        return normalised_and_hog(images, mask, masked, 16, MEAN, STD, torch.bfloat16)

    def unfused(images: Tensor) -> tuple[Tensor, Tensor]:
        return normalise(images, torch.bfloat16), official_hog(images)

    return {
        "kernel, masked patches": _times(
            100, partial(fused, mask=masks, masked=masked_patches(grid) * len(images)), images
        ),
        "kernel, all patches": _times(100, partial(fused, mask=every, masked=every.numel()), images),
        "official definition": _times(5, unfused, images),
    }


def _times(times: int, function: Callable[[Tensor], object], batch: Tensor) -> Callable[[], int]:
    """Run a function so many times; what counts is the elements of the batches."""

    def run() -> int:
        for _ in range(times):
            function(batch)
        if GPU:
            torch.cuda.synchronize()
        return times * len(batch)

    return run


def official_hog(images: Tensor) -> Tensor:
    """HOG of uint8 (B, 3, H, W) as the published code defines it, of normalised floats: float32 (B, patches, 108).

    A peer to compare with, written down step by step as one would without thought of speed.
    """
    batch, _, height, width = images.shape
    pixels = F.pad(normalise(images, torch.float32), (1, 1, 1, 1), mode="reflect")
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], device=images.device)
    gx = F.conv2d(pixels, sobel.expand(3, 1, 3, 3), groups=3)
    gy = F.conv2d(pixels, sobel.T.expand(3, 1, 3, 3), groups=3)
    magnitude = torch.hypot(gx, gy)
    bins = (torch.atan2(gx, gy) / math.pi * 9).floor().long() % 9
    votes = torch.zeros(batch, 3, 9, height, width, device=images.device)
    votes.scatter_add_(2, bins[:, :, None], magnitude[:, :, None])
    cells = F.normalize(votes.unfold(3, 8, 8).unfold(4, 8, 8).sum((-2, -1)), dim=2)
    patches = cells.unfold(3, 2, 2).unfold(4, 2, 2)  # (B, 3, 9, rows, columns, 2, 2)
    return patches.permute(0, 3, 4, 1, 2, 5, 6).reshape(batch, -1, 108)


def masks(arguments: argparse.Namespace) -> Rates:
    """Masks of 14x14 a second, in batches of 32 and 256."""
    keys = torch.randint(0, 2**62, (256,), device=DEVICE)
    make = partial(block_masks, compile=GPU)
    return race({f"batch of {n}": _times(10 if GPU else 1, make, keys[:n]) for n in (256, 32)})
