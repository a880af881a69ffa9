"""Whether a GPU does what a CPU does: the part of `scripts/bench.py gpu` that comes before any timing."""

from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.data import encoded_batches
from benchmarks.scale import Scale
from benchmarks.step import Loop, resident
from pipeline.data.augment import sample_keys
from pipeline.data.decode import decoder_for
from pipeline.finetune.erasing import random_erasing
from pipeline.finetune.randaugment import TRANSFORMS, rand_augment
from pipeline.pixels import MEAN, STD, normalise
from pipeline.targets.hog import hog_target
from pipeline.train.world import join

CLOSE = 2.0  # mean difference of pixels of 0..255 between two JPEG decoders
ROUNDING = 2**-8  # of bf16


@dataclass(frozen=True)
class Check:
    """Something that is right or not: `passed`, or None where there is no GPU to tell, and the numbers that say so."""

    name: str
    passed: bool | None
    numbers: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As in the file of `gpu`."""
        return asdict(self)


def fused_kernel(scale: Scale, shards: Path) -> list[Check]:
    """Images and targets of the kernel against the exact reference on the CPU, in every memory format and precision."""
    from pipeline.targets.hog.triton import normalised_and_hog

    checks = []
    for kind, pixels in _pictures(scale.check_size).items():
        exact, image = hog_target(pixels).flatten(0, 1), normalise(pixels, torch.float32)
        mask = torch.ones(len(pixels), *(side // 16 for side in pixels.shape[2:]), dtype=torch.bool)
        for layout, dtype in product((torch.contiguous_format, torch.channels_last), (torch.float32, torch.bfloat16)):
            there = pixels.to(scale.device).contiguous(memory_format=layout)
            normalised, target = (
                out.cpu().float()
                for out in normalised_and_hog(
                    there, mask.to(scale.device), mask.numel(), 16, MEAN, STD, dtype, target_dtype=dtype
                )
            )
            # One rounding of values up to 1, and up to 3; Triton's interpreter cuts off instead
            once = 0 if dtype == torch.float32 else ROUNDING * (1 + scale.dry)
            off, off_image = float((target - exact).abs().max()), float((normalised - image).abs().max())
            flat = bool(torch.equal(target == 0, exact == 0))
            right = off <= 1e-5 + once and off_image <= 1e-5 + 3 * once and flat
            numbers = {"target off by": off, "image off by": off_image, "zero where the reference is": flat}
            checks.append(Check(f"kernel, {kind}, {str(layout)[6:]}, {str(dtype)[6:]}", right, numbers))
    return checks


def _pictures(size: tuple[int, int]) -> dict[str, Tensor]:
    """uint8 (2, 3, H, W): noise, half of it flat, and a ramp with many exact ties of a gradient with a ray."""
    height, width = size
    noise = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    flat = noise.clone()
    flat[..., : width // 2] = 77
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ramp = ((x * 5 // 2 + y * 3) % 256).to(torch.uint8).expand(2, 3, -1, -1).contiguous()
    return {"noise": noise, "half flat": flat, "ramp": ramp}


def decoded_pixels(scale: Scale, shards: Path) -> list[Check]:
    """Crops decoded, cropped, resized and flipped on the device against those of the CPU."""
    (crops, *_) = encoded_batches(shards, scale.check_images)
    size = scale.check_size[0]
    cpu = decoder_for(torch.device("cpu"), scale.check_images, size, 2, 0)
    cpu.feed(crops)
    expected = cpu.take().images.float()
    checks = []
    for load in (0, 1):
        decoder = decoder_for(scale.device, scale.check_images, size, 2, load)
        decoder.feed(crops)
        off = (decoder.take().images.cpu().float() - expected).abs()
        numbers = {"mean": float(off.mean()), "share over 8": float((off > 8).float().mean()), "most": float(off.max())}
        checks.append(Check(f"decoded pixels, hw_decoder_load={load}", numbers["mean"] <= CLOSE, numbers))
    return checks


def bad_image(scale: Scale, shards: Path) -> list[Check]:
    """An image that is none costs nothing but itself: the others of its batch are as without it."""
    (crops, *_) = encoded_batches(shards, scale.check_images)
    bad = scale.check_images // 2
    broken = list(crops.encoded)
    broken[bad] = np.full(1000, 255, np.uint8)
    decoder = decoder_for(scale.device, scale.check_images, scale.check_size[0], 2, 0)
    decoder.feed(crops)
    whole = decoder.take().images.cpu()
    decoder.feed(replace(crops, encoded=broken))
    decoder.feed(crops)
    rescued, after = decoder.take(), decoder.take()
    others = torch.arange(len(whole)) != bad
    same = torch.equal(rescued.images.cpu()[others], whole[others]) and torch.equal(after.images.cpu(), whole)
    black = not rescued.images[bad].any()
    numbers = {"problems": {str(place): why for place, why in rescued.problems.items()}, "others the same": same}
    return [Check("rescue of a bad image", list(rescued.problems) == [bad] and same and black, numbers)]


def compiled_loss(scale: Scale, shards: Path) -> list[Check]:
    """The loss of a compiled model equals the eager one's, at the first step and after three."""
    world = join()
    losses: dict[str, list[float]] = {}
    for how, setting in (("compiled", scale.compiled), ("eager", scale.eager)):
        loop = Loop(scale.small(f"engine.compile={setting}"), world)
        batches = resident(loop.recipe, world)
        losses[how] = []
        for _ in range(3):
            loop.step(batches)
            losses[how].append(float(loop.loss))
    compiled, eager = losses.values()
    right = all(abs(a - b) <= ROUNDING * b for a, b in zip(compiled, eager, strict=True))
    return [Check("compiled loss equals eager loss", right, losses)]


def no_waiting(scale: Scale, shards: Path) -> list[Check]:
    """A step at ZeRO 0, 1 and 2 never waits for the device."""
    world = join()
    checks = []
    for stage in (0, 1, 2):
        loop = Loop(scale.small(f"engine.compile={scale.compiled}", f"engine.zero_stage={stage}"), world)
        batches = resident(loop.recipe, world)
        loop.steps(3, batches)
        waited = None
        if not scale.dry:
            torch.cuda.set_sync_debug_mode("error")
        try:
            loop.step(batches)
            loop.step(batches)
        except RuntimeError as error:
            waited = str(error)
        finally:
            if not scale.dry:
                torch.cuda.set_sync_debug_mode("default")
        passed = None if scale.dry else waited is None
        checks.append(Check(f"no host synchronisation in a step, ZeRO {stage}", passed, {"error": waited}))
    return checks


def augmented_pixels(scale: Scale, shards: Path) -> list[Check]:
    """Every transform on the device against the CPU's, and that neither they nor erasing wait for it."""
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, 3, *scale.check_size), dtype=torch.uint8, generator=noise)
    there = images.to(scale.device).contiguous(memory_format=torch.channels_last)
    off = {}
    for name, transform in TRANSFORMS.items():
        arguments = torch.from_numpy(transform.argument(np.full(32, 9.0), np.ones(32)))
        changed = transform.apply(there, arguments.to(scale.device)).cpu().short()
        difference = (changed - transform.apply(images, arguments).short()).abs()
        off[name] = [int(difference.max()), float(difference.float().mean())]
    keys = sample_keys(0, np.zeros(32, np.int64), np.arange(32, dtype=np.int64))
    waited = None
    if not scale.dry:
        torch.cuda.set_sync_debug_mode("error")
    try:
        random_erasing(rand_augment(there, keys).float(), keys)
    except RuntimeError as error:
        waited = str(error)
    finally:
        if not scale.dry:
            torch.cuda.set_sync_debug_mode("default")
    right = all(most <= 1 and mean < 0.01 for most, mean in off.values()) and not waited
    return [Check("augmented pixels", right, {"off by: most, mean": off, "waited": waited})]
