"""Item 2: check the fused kernels and the augmentation on the device against references, and time a kernel."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.results import Bench, Check, LeftOut, Result
from benchmarks.gpu.waiting import recorded_waits
from benchmarks.targets import hog
from model.layout import Layout, mask_of_all
from pipeline.data.augment import sample_keys
from pipeline.finetune.erasing import random_erasing
from pipeline.finetune.randaugment import TRANSFORMS, rand_augment
from pipeline.pixels import IMAGENET, normalise
from pipeline.targets.hog import hog_target
from pipeline.targets.hog.scales import hog_scales

ROUNDING = 2**-8  # rounding of bf16


def fused_kernel(bench: Bench) -> Iterator[Result]:
    """Compare the kernel with the exact reference on the CPU, in every memory format and precision."""
    from pipeline.targets.hog.triton import normalised_and_hog

    scale = bench.scale
    for patch, (kind, picture) in product((16, 14), _pictures(scale.check_size).items()):
        rows, columns = (side // patch for side in scale.check_size)
        pixels = picture[..., : rows * patch, : columns * patch].contiguous()
        exact, image = hog_target(pixels, patch).flatten(0, 1), normalise(pixels, torch.float32)
        mask = torch.ones(len(pixels), rows, columns, dtype=torch.bool)
        for layout, dtype in product((torch.contiguous_format, torch.channels_last), (torch.float32, torch.bfloat16)):
            there = pixels.to(scale.device).contiguous(memory_format=layout)
            normalised, target = (
                out.cpu().float()
                for out in normalised_and_hog(
                    there, mask.to(scale.device), mask.numel(), patch, *IMAGENET, dtype, target_dtype=dtype
                )
            )
            name = f"kernel, {patch}-pixel patches, {kind}, {str(layout)[6:]}, {str(dtype)[6:]}"
            once = _rounding(dtype, scale.dry)
            yield _equal(name, (target, exact, once), (normalised, image, 3 * once))


def scales_kernel(bench: Bench) -> Iterator[Result]:
    """Compare the kernel of HOG at four scales likewise; its targets are always float32."""
    from pipeline.targets.hog.scales_triton import normalised_and_scales

    scale = bench.scale
    for patch, (kind, picture) in product((8, 16, 32), _pictures(scale.check_size).items()):
        rows, columns = (side // (2 * patch) * 2 for side in scale.check_size)
        if 0 in (rows, columns):
            continue  # the pictures of a trial are smaller than 2x2 such patches
        pixels = picture[..., : rows * patch, : columns * patch].contiguous()
        exact, image = hog_scales(pixels, patch).flatten(0, 1), normalise(pixels, torch.float32)
        mask = mask_of_all(len(pixels), Layout(1, rows, columns), scale.device)
        for layout, dtype in product((torch.contiguous_format, torch.channels_last), (torch.float32, torch.bfloat16)):
            there = pixels.to(scale.device).contiguous(memory_format=layout)
            normalised, target = (
                out.cpu().float() for out in normalised_and_scales(there, mask, patch, *IMAGENET, dtype)
            )
            name = f"kernel of scales, {patch}-pixel patches, {kind}, {str(layout)[6:]}, {str(dtype)[6:]}"
            yield _equal(name, (target, exact, 0), (normalised, image, 3 * _rounding(dtype, scale.dry)))


def _rounding(dtype: torch.dtype, dry: bool) -> float:
    """Return the error of rounding a value up to 1; Triton's interpreter truncates instead."""
    return 0 if dtype == torch.float32 else ROUNDING * (1 + dry)


def _equal(name: str, targets: tuple[Tensor, Tensor, float], images: tuple[Tensor, Tensor, float]) -> Check:
    """Compare targets and normalised images with references, each up to an error beside 1e-5."""
    (target, exact, once), (normalised, image, rounding) = targets, images
    off, off_image = float((target - exact).abs().max()), float((normalised - image).abs().max())
    flat = bool(torch.equal(target == 0, exact == 0))
    right = off <= 1e-5 + once and off_image <= 1e-5 + rounding and flat
    return Check(name, right, {"target off by": off, "image off by": off_image, "zero where the reference is": flat})


def _pictures(size: tuple[int, int]) -> dict[str, Tensor]:
    """Return uint8 (2, 3, H, W): noise, half of it flat, and a ramp with many exact ties of a gradient with a ray."""
    height, width = size
    noise = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    flat = noise.clone()
    flat[..., : width // 2] = 77
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ramp = ((x * 5 // 2 + y * 3) % 256).to(torch.uint8).expand(2, 3, -1, -1).contiguous()
    return {"noise": noise, "half flat": flat, "ramp": ramp}


def kernel_time(bench: Bench) -> Iterator[Result]:
    """Time the kernel beside its memory floor and the official definition."""
    if bench.scale.dry:
        yield LeftOut("time of the kernel", "CUDA graphs need a GPU")
    else:
        yield from hog(224, bench.scale.device, bench.scale.images)


def augmented_pixels(bench: Bench) -> Iterator[Result]:
    """Compare every transform with the CPU's, and check that neither they nor erasing wait for the device."""
    scale, noise = bench.scale, torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, 3, *scale.check_size), dtype=torch.uint8, generator=noise)
    there = images.to(scale.device).contiguous(memory_format=torch.channels_last)
    off = {}
    for name, transform in TRANSFORMS.items():
        arguments = torch.from_numpy(transform.argument(np.full(32, 9.0), np.ones(32)))
        changed = transform.apply(there, arguments.to(scale.device)).cpu().short()
        difference = (changed - transform.apply(images, arguments).short()).abs()
        off[name] = [int(difference.max()), float(difference.float().mean())]
    keys = sample_keys(0, np.zeros(32, np.int64), np.arange(32, dtype=np.int64))
    with recorded_waits(scale.device) as waits:
        random_erasing(rand_augment(there, keys).float(), keys)
    right = all(most <= 1 and mean < 0.01 for most, mean in off.values()) and not waits
    yield Check("augmented pixels", right, {"off by: most, mean": off, "waits": waits})
