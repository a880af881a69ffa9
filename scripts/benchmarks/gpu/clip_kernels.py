"""Item 11: check the fused kernel for clips and the kernel for cube masks against their references, and time them."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor

from benchmarks.gpu.kernel import ROUNDING
from benchmarks.gpu.results import Bench, Check, LeftOut, Result
from benchmarks.racing import compare, race
from benchmarks.targets import official_hog, repeated, replayed
from model.layout import Layout, spread
from pipeline.masks.cubes import cube_masks, masked_cells
from pipeline.peaks import peak
from pipeline.pixels import Statistics, normalise
from pipeline.targets.hog import hog_target

KINETICS = Statistics((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))
DESCRIBED = 2  # distance of described frames
_CELLS = (8, 7, 7)
_MASKS = 4096  # compared
_TIED = 4  # that may differ: among equal cells to fill a mask, each takes any


def clip_kernel(bench: Bench) -> Iterator[Result]:
    """Compare the kernel with the exact reference on the CPU, in every memory format and precision."""
    from pipeline.targets.hog.triton import normalised_and_hog

    scale = bench.scale
    shape = (2, 3, scale.clip_frames, *scale.check_size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    frames = pixels[:, :, ::DESCRIBED].transpose(1, 2).flatten(0, 1)
    exact, clips = hog_target(frames).flatten(0, 1), normalise(pixels, torch.float32, KINETICS)
    mask = torch.ones(len(frames), *(side // 16 for side in scale.check_size), dtype=torch.bool)
    for layout, dtype in product((torch.contiguous_format, torch.channels_last_3d), (torch.float32, torch.bfloat16)):
        there = pixels.to(scale.device).contiguous(memory_format=layout)
        normalised, target = (
            out.cpu().float()
            for out in normalised_and_hog(
                there, mask.to(scale.device), mask.numel(), 16, *KINETICS, dtype, target_dtype=dtype, step=DESCRIBED
            )
        )
        once = 0 if dtype == torch.float32 else ROUNDING * (1 + scale.dry)  # Triton's interpreter truncates
        off, off_clip = float((target - exact).abs().max()), float((normalised - clips).abs().max())
        right = off <= 1e-5 + once and off_clip <= 1e-5 + 3 * once
        numbers = {"target off by": off, "clip off by": off_clip}
        yield Check(f"kernel of clips, {str(layout)[6:]}, {str(dtype)[6:]}", right, numbers)


def clip_kernel_time(bench: Bench) -> Iterator[Result]:
    """Time the kernel under cube masks beside its memory floor and the official definition."""
    if bench.scale.dry:
        yield LeftOut("time of the kernel of clips", "CUDA graphs need a GPU")
        return
    from pipeline.targets.hog.triton import normalised_and_hog

    batch, frames, size, device = bench.scale.clips, bench.scale.clip_frames, 224, bench.scale.device
    noise = torch.randint(0, 256, (batch, frames, size, size, 3), dtype=torch.uint8, device=device)
    clips = noise.permute(0, 4, 1, 2, 3)
    grid = Layout(frames // DESCRIBED, size // 16, size // 16)
    cells = cube_masks(torch.arange(batch, device=device), (grid.frames, size // 32, size // 32))
    mask = spread(cells, grid).view(-1, grid.rows, grid.columns)
    masked = int(mask.sum())

    def fused(clips: Tensor) -> object:
        return normalised_and_hog(clips, mask, masked, 16, *KINETICS, torch.bfloat16, step=DESCRIBED)

    def unfused(clips: Tensor) -> object:
        described = clips[:, :, ::DESCRIBED].transpose(1, 2).flatten(0, 1)
        return normalise(clips, torch.bfloat16, KINETICS), official_hog(described)

    rates = race({"masked cells": replayed(100, fused, clips), "official definition": repeated(3, unfused, clips)})
    limits = []
    if card := peak():
        moved = clips.numel() * (1 + 2) / batch + masked / batch * 108 * 4  # a clip's bytes: in, bf16 and targets out
        limits.append(f"{card.memory} TB/s, the memory of an {card.name}")
        rates[limits[-1]] = card.memory * 1e12 / moved
    taken = {name: batch / rate * 1e6 for name, rate in rates.items()}
    name = f"clip and HOG target by one kernel, batch of {batch}, {frames} frames of {size} px"
    yield compare(f"{name}: time", "us", taken, limits)


def cubes(bench: Bench) -> Iterator[Result]:
    """Compare the kernel's masks with those of a CPU, and time both."""
    from pipeline.masks import cubes_triton  # torch includes Triton only where there are GPUs

    scale = bench.scale
    keys = torch.arange(8 if scale.dry else _MASKS)
    made = cubes_triton.cube_masks(keys.to(scale.device), _CELLS, 0.4, samples=8 if scale.dry else 1).cpu()
    different = int((made != cube_masks(keys, _CELLS)).flatten(1).any(1).sum())
    exact = bool((made.flatten(1).sum(1) == masked_cells(_CELLS)).all())
    numbers = {"masks": len(keys), "different": different, "all of the right size": exact}
    yield Check("masks of the kernel of cubes", different <= _TIED and exact, numbers)
    keys = torch.arange(scale.clips, device=scale.device)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "by a kernel": partial(cube_masks, compile=True),
        "launched one by one": cube_masks,
    }
    rates = race({name: repeated(1 if scale.dry else 10, make, keys) for name, make in ways.items()}, scale.rounds)
    yield compare(f"cube masks, batch of {len(keys)}", "masks/s", rates)
