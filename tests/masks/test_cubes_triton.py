"""The kernel that makes masks of clips: those of the reference, interpreted on a CPU, and compiled for GPUs."""

import sys
from pathlib import Path

import pytest
import torch
from kernels import compiled

from model.layout import Layout
from pipeline.masks import cubes
from pipeline.masks.cubes_triton import cube_masks
from pipeline.masks.masker import masker_for
from pipeline.masks.settings import MaskSettings

GPU = torch.cuda.is_available()


def fused(keys: torch.Tensor, grid: tuple[int, int, int], ratio: float) -> torch.Tensor:
    if GPU:
        return cube_masks(keys.cuda(), grid, ratio).cpu()
    return cube_masks(keys, grid, ratio, samples=512)  # the interpreter's time is that of its calls


@pytest.mark.parametrize(
    ("grid", "ratio", "count"),
    [
        ((8, 7, 7), 0.4, 1500),
        ((2, 2, 2), 0.5, 100),
        ((3, 1, 1), 0.4, 100),
        ((5, 6, 9), 0.9, 513),
        ((4, 6, 10), 0.4, 100),
        ((16, 7, 7), 0.25, 100),
    ],
)
def test_masks_are_those_of_the_reference(grid: tuple[int, int, int], ratio: float, count: int) -> None:
    keys = torch.randint(-(2**63), 2**63 - 1, (count,), generator=torch.Generator().manual_seed(count))
    assert torch.equal(fused(keys, grid, ratio), cubes.cube_masks(keys, grid, ratio))


@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings its assembler for Linux only")
@pytest.mark.parametrize(
    "sizes",
    [
        {"FRAMES": 8, "ROWS": 7, "COLUMNS": 7, "CELLS": 512, "SAMPLES": 1},
        {
            "FRAMES": 4,
            "ROWS": 2,
            "COLUMNS": 2,
            "CELLS": 16,
            "SAMPLES": 1,
            "smallest": 1,
        },  # of which Triton makes a constant
    ],
)
def test_compiles_for_gpus_without_spills_and_in_full_precision(tmp_path: Path, sizes: dict[str, int]) -> None:
    for usage, ptx in compiled(tmp_path, "pipeline.masks.cubes_triton", sizes, warps=1):
        assert int(usage["REG"]) <= 112 and usage["STACK"] == usage["LOCAL"] == "0", usage
        assert "sqrt.rn.f64" in ptx and "div.rn.f64" in ptx and "sqrt.approx" not in ptx


@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_a_gpu_makes_those_of_a_masker_in_one_launch_and_their_indices_in_a_few() -> None:
    masker = masker_for(MaskSettings(), Layout(8, 7, 7), Layout(8, 14, 14), compile=True)
    keys = torch.arange(16).cuda()
    masker(keys)  # compiles
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        masker(keys)
        torch.cuda.synchronize()
    kernels = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert sum("_few_masks" in name for name in kernels) == 1 and len(kernels) < 30, kernels
