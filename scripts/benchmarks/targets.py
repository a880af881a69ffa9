"""Measure HOG targets and masks."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.figures import Figure
from benchmarks.hardware import synchronise
from benchmarks.racing import compare, race
from pipeline.masks.blocks import block_masks, masked_patches
from pipeline.peaks import peak
from pipeline.pixels import IMAGENET, normalise
from pipeline.targets.hog.arithmetic import compiled, hog_target

Device = torch.device


def hog(size: int, device: Device, images: int) -> list[Figure]:
    """Measure targets alone on a CPU, or with the normalised images on a GPU."""
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (images, size, size, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    return _hog_on_gpu(pixels) if device.type == "cuda" else _hog_on_cpu(pixels.contiguous())


def _hog_on_cpu(images: Tensor) -> list[Figure]:
    def with_skimage() -> int:
        from skimage.feature import hog as skimage_hog

        for image in images[:8].permute(0, 2, 3, 1).numpy():
            for channel in range(3):
                skimage_hog(image[..., channel], 9, (8, 8), (1, 1), feature_vector=False)
        return min(8, len(images))

    rates = race(
        {
            "compiled": repeated(1, compiled(hog_target), images),
            "eager": repeated(1, hog_target, images),
            "official definition": repeated(1, official_hog, images),
            "skimage.feature.hog": with_skimage,
            "a copy of the pixels": repeated(10, Tensor.clone, images),
        }
    )
    return [compare(f"HOG target, {images.shape[-1]} px", "images/s", rates, limits=("a copy of the pixels",))]


def _hog_on_gpu(images: Tensor) -> list[Figure]:
    from pipeline.targets.hog.triton import normalised_and_hog

    size = images.shape[-1]
    grid = (size // 16, size // 16)
    every = torch.ones(len(images), *grid, dtype=torch.bool, device=images.device)
    masks = block_masks(torch.arange(len(images), device=images.device), grid)

    def fused(images: Tensor, mask: Tensor, masked: int) -> tuple[Tensor, Tensor]:
        return normalised_and_hog(images, mask, masked, 16, *IMAGENET, torch.bfloat16)

    def unfused(images: Tensor) -> tuple[Tensor, Tensor]:
        return normalise(images, torch.bfloat16), official_hog(images)

    masked = masked_patches(grid)
    of_masked = partial(fused, mask=masks, masked=masked * len(images))
    of_all = partial(fused, mask=every, masked=every.numel())
    rates = race(
        {
            "masked patches": replayed(100, of_masked, images),
            "all patches": replayed(100, of_all, images),
            "masked patches, launched one by one": repeated(100, of_masked, images),
            "official definition": repeated(5, unfused, images),
        }
    )
    card = peak()
    if card:
        moved = 3 * size**2 * (1 + 2) + masked * 108 * 4  # an image's bytes: uint8 in, bf16 and its targets out
        rates[f"{card.memory} TB/s, the memory of an {card.name}"] = card.memory * 1e12 / moved
    limits = list(rates)[4:]
    name = f"image and HOG target by one kernel, batch of {len(images)}, {size} px"
    times = {contestant: len(images) / rate * 1e6 for contestant, rate in rates.items()}
    return [
        compare(name, "images/s", rates, limits),
        compare(f"{name}: time", "us", times, limits),
    ]


def repeated(times: int, function: Callable[[Tensor], object], batch: Tensor) -> Callable[[], int]:
    """Return a function that runs `function` `times` times and returns the number of elements in the batches."""

    def run() -> int:
        for _ in range(times):
            function(batch)
        synchronise(batch.device)
        return times * len(batch)

    return run


def replayed(times: int, function: Callable[[Tensor], object], batch: Tensor) -> Callable[[], int]:
    """Return the same for a GPU by a CUDA graph, without the time of launching, which a training step hides."""
    function(batch)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function(batch)
    return repeated(times, lambda _: graph.replay(), batch)


def official_hog(images: Tensor) -> Tensor:
    """Compute HOG of uint8 (B, 3, H, W) as the published code does, on normalised floats: float32 (B, patches, 108).

    A peer for comparison, written step by step without optimisation.
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


def masks(device: Device) -> list[Figure]:
    """Measure masks of 14x14, in batches of 256 and 32."""
    keys = torch.randint(0, 2**62, (256,), device=device)
    gpu = device.type == "cuda"
    make = partial(block_masks, compile=gpu)
    rates = race({f"batch of {n}": repeated(10 if gpu else 1, make, keys[:n]) for n in (256, 32)})
    return [Figure(f"block masks, {batch}", "masks/s", rate) for batch, rate in rates.items()]
