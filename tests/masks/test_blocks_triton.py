"""The kernel that makes masks: the very masks of the reference, interpreted on a CPU, and compiled for GPUs."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from kernels import compiled

from pipeline.masks import blocks
from pipeline.masks.blocks_triton import block_masks

GPU = torch.cuda.is_available()


def fused(keys: torch.Tensor, grid: tuple[int, int] = (14, 14), ratio: float = 0.4) -> torch.Tensor:
    if GPU:
        return block_masks(keys.cuda(), grid, ratio).cpu()
    return block_masks(keys, grid, ratio, samples=512)  # the interpreter's time is that of its calls


@pytest.mark.parametrize(
    ("grid", "ratio", "count"),
    [
        ((14, 14), 0.4, 3000),
        ((6, 6), 0.4, 513),
        ((6, 10), 0.4, 513),
        ((2, 2), 0.5, 100),
        ((16, 16), 0.4, 100),
        ((7, 20), 0.25, 100),
        ((24, 24), 0.75, 100),
        ((8, 14), 0.99, 100),
    ],
)
def test_masks_are_those_of_the_reference(grid: tuple[int, int], ratio: float, count: int) -> None:
    keys = torch.randint(-(2**63), 2**63 - 1, (count,), generator=torch.Generator().manual_seed(count))
    assert torch.equal(fused(keys, grid, ratio), blocks.block_masks(keys, grid, ratio))


def test_masks_stay_what_they_were() -> None:
    """The hash is that of test_masking.py."""
    bits = np.packbits(fused(torch.arange(1000)).numpy())
    assert (
        hashlib.sha256(bits.tobytes()).hexdigest() == "d8e825a21101d2a269d8ea15746ea650fdd4eefbee3d50a3bbe7d6ac3b6dc523"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings its assembler for Linux only")
def test_compiles_for_gpus_without_spills_and_in_full_precision(tmp_path: Path) -> None:
    sizes = {"ROWS": 14, "COLUMNS": 14, "CELLS": 256, "SAMPLES": 1}
    for usage, ptx in compiled(tmp_path, "pipeline.masks.blocks_triton", sizes, warps=1):
        assert int(usage["REG"]) <= 72 and usage["STACK"] == usage["LOCAL"] == "0", usage
        assert "sqrt.rn.f64" in ptx and "div.rn.f64" in ptx and "sqrt.approx" not in ptx


@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_a_gpu_makes_them_in_one_launch() -> None:
    keys = torch.arange(256).cuda()
    blocks.block_masks(keys, compile=True)  # compiles
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        blocks.block_masks(keys, compile=True)
        torch.cuda.synchronize()
    kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert len(kernels) == 1, [event.name for event in kernels]
