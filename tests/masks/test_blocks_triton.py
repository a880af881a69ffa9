"""The kernel that makes masks: the very masks of the reference, interpreted on a CPU, and compiled for GPUs."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

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


COMPILE = """
import json, subprocess, triton
from pathlib import Path
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from pipeline.masks.blocks_triton import _few_masks as kernel

tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
sizes = {"ROWS": 14, "COLUMNS": 14, "CELLS": 256, "SAMPLES": 1}
types = {"keys": "*i64", "masks": "*u8", "count": "i32", "target": "i32", "smallest": "i32"}
types |= dict.fromkeys(sizes, "constexpr")
constants = {(kernel.arg_names.index(name),): value for name, value in sizes.items()}
for capability in (80, 90, 100):
    source = ASTSource(kernel, {name: types[name] for name in kernel.arg_names}, constants)
    options = {"num_warps": 1, "enable_fp_fusion": False}
    built = triton.compile(source, GPUTarget("cuda", capability, 32), options).asm
    Path("kernel.cubin").write_bytes(built["cubin"])
    usage = subprocess.run([tool, "-res-usage", "kernel.cubin"], capture_output=True, text=True, check=True).stdout
    print(json.dumps([capability, usage, built["ptx"]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings its assembler for Linux only")
def test_compiles_for_gpus_without_spills_and_in_full_precision(tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parents[2])
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        cwd=tmp_path,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    built = [json.loads(line) for line in done.stdout.splitlines()]
    assert [capability for capability, _, _ in built] == [80, 90, 100]
    for capability, usage, ptx in built:
        resources = dict(part.split(":") for part in usage.split() if part.startswith(("REG:", "STACK:", "LOCAL:")))
        assert int(resources["REG"]) <= 72 and resources["STACK"] == resources["LOCAL"] == "0", (capability, usage)
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
