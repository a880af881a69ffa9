"""The fused kernel against the reference: interpreted on a CPU, run on a GPU, and compiled for GPUs without one."""

import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from making import hog_examples

from pipeline.pixels import IMAGENET, Statistics, normalise
from pipeline.targets.hog import hog_target
from pipeline.targets.hog.triton import normalised_and_hog

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
TINY = (2, 3, 32, 48)

# (B, 3, H, W), patch: one patch, one cell, side and number of cells no powers of two, cells beyond a warp
SIZES = [((1, 3, 16, 16), 16), (TINY, 16), ((1, 3, 8, 24), 8), ((1, 3, 24, 48), 24), ((1, 3, 32, 64), 32)]
SIZES += [((2, 3, 28, 42), 14), ((1, 3, 40, 20), 20)]  # cells of 7 and of 10 pixels


def draw(shape: tuple[int, int, int, int], kind: str) -> torch.Tensor:
    torch.manual_seed(0)
    batch, channels, height, width = shape
    noise = torch.randint(0, 256, shape, dtype=torch.uint8)
    if kind == "ramp":  # few distinct gradients, many exact ties of a gradient with a ray
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        return ((x * 5 // 2 + y * 3) % 256).expand(batch, channels, -1, -1).to(torch.uint8).contiguous()
    if kind == "dark":
        return (noise < 3).to(torch.uint8)
    if kind == "flat":
        noise[..., : width // 2] = 77
    return noise


def fused(
    images: torch.Tensor,
    mask: torch.Tensor,
    patch: int = 16,
    dtype: torch.dtype = torch.float32,
    target_dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    pixels, targets = normalised_and_hog(
        images.to(DEVICE), mask.to(DEVICE), int(mask.sum()), patch, *IMAGENET, dtype, target_dtype
    )
    return pixels.cpu(), targets.cpu()


def every_patch(images: torch.Tensor, patch: int = 16) -> torch.Tensor:
    return torch.ones(len(images), images.shape[2] // patch, images.shape[3] // patch, dtype=torch.bool)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("shape", "patch"), SIZES)
def test_equals_the_reference(shape: tuple[int, int, int, int], patch: int, memory_format: torch.memory_format) -> None:
    images = draw(shape, "noise").to(memory_format=memory_format)
    pixels, targets = fused(images, every_patch(images, patch), patch)
    torch.testing.assert_close(targets, hog_target(images, patch).flatten(0, 1), atol=2e-6, rtol=0)
    torch.testing.assert_close(pixels, normalise(images, torch.float32), atol=1e-6, rtol=0)
    assert pixels.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("kind", ["ramp", "dark", "flat"])
def test_ties_and_flat_regions_are_those_of_the_reference(kind: str) -> None:
    images = draw(TINY, kind)
    expected = hog_target(images).flatten(0, 1)
    targets = fused(images, every_patch(images))[1]
    torch.testing.assert_close(targets, expected, atol=2e-6, rtol=0)
    assert (expected == 0).any()
    assert torch.equal(targets == 0, expected == 0)


def test_rays_beyond_90_degrees_mirror_those_before() -> None:
    """As the kernel has it, of which float32 must not make something else than `hog.within_bins` has."""
    for k in range(1, 5):
        this, mirrored = (np.float32(1 / math.tan(ray * math.pi / 9)) for ray in (k, 9 - k))
        assert this == -mirrored


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_half_precision_is_one_rounding_away(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    images = draw(TINY, "noise").to(memory_format=memory_format)
    pixels, targets = fused(images, every_patch(images), dtype=dtype, target_dtype=dtype)
    assert pixels.dtype == targets.dtype == dtype
    # Triton's interpreter cuts bfloat16 off where GPUs round to the nearest
    once = torch.finfo(dtype).eps / (2 if GPU or dtype == torch.float16 else 1)
    torch.testing.assert_close(targets.float(), hog_target(images).flatten(0, 1), atol=2e-6, rtol=once)
    torch.testing.assert_close(pixels.float(), normalise(images, torch.float32), atol=1e-6, rtol=once)


def test_masked_patches_in_row_major_order_and_every_pixel() -> None:
    images = draw((3, 3, 32, 48), "noise")
    mask = torch.tensor([[[0, 1, 1], [1, 0, 0]], [[0, 0, 0], [0, 0, 0]], [[0, 0, 1], [0, 1, 1]]], dtype=torch.bool)
    pixels, targets = fused(images, mask)
    assert targets.shape == (6, 108)
    torch.testing.assert_close(targets, hog_target(images)[mask.flatten(1)], atol=2e-6, rtol=0)
    torch.testing.assert_close(pixels, normalise(images, torch.float32), atol=1e-6, rtol=0)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("frames", "step"), [(1, 1), (4, 2), (5, 2), (3, 1)])
def test_clips_are_normalised_whole_and_described_at_every_step(frames: int, step: int, last: bool) -> None:
    """Statistics differ by channel, and the mask by frame, so that none can stand for another."""
    torch.manual_seed(1)
    clips = torch.randint(0, 256, (2, 3, frames, 32, 48), dtype=torch.uint8)
    memory_format = torch.channels_last_3d if last else torch.contiguous_format
    clips = clips.contiguous(memory_format=memory_format)
    described = clips[:, :, ::step].transpose(1, 2).flatten(0, 1)
    mask = torch.rand(len(described), 2, 3) < 0.4
    own = Statistics((0.45, 0.4, 0.3), (0.225, 0.2, 0.5))
    pixels, targets = normalised_and_hog(
        clips.to(DEVICE), mask.to(DEVICE), int(mask.sum()), 16, *own, torch.float32, step=step
    )
    assert pixels.shape == clips.shape
    assert pixels.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(pixels.cpu(), normalise(clips, torch.float32, own), atol=1e-6, rtol=0)
    torch.testing.assert_close(targets.cpu(), hog_target(described)[mask.flatten(1)], atol=2e-6, rtol=0)


def test_writes_no_more_targets_than_asked_for() -> None:
    images = draw(TINY, "noise").to(DEVICE)
    mask = every_patch(images).to(DEVICE)
    targets = normalised_and_hog(images, mask, 5, 16, *IMAGENET, torch.float32)[1]
    torch.testing.assert_close(targets.cpu(), hog_target(images.cpu()).flatten(0, 1)[:5], atol=2e-6, rtol=0)


def test_takes_a_part_of_a_larger_image() -> None:
    images = draw((2, 3, 48, 64), "noise")[:, :, 8:40, 8:56]
    pixels, targets = fused(images, every_patch(images))
    torch.testing.assert_close(targets, hog_target(images).flatten(0, 1), atol=2e-6, rtol=0)
    torch.testing.assert_close(pixels, normalise(images, torch.float32), atol=1e-6, rtol=0)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="do not divide"):
        fused(torch.zeros(1, 3, 40, 32, dtype=torch.uint8), torch.ones(1, 2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="uint8"):
        fused(torch.zeros(1, 3, 32, 32), torch.ones(1, 2, 2, dtype=torch.bool))


COMPILE = """
import re, subprocess, tempfile
from itertools import product
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from pipeline.targets.hog.arithmetic import cell_of
from pipeline.targets.hog.triton import _one_patch as kernel

pointers = {"images": "*u8", "row": "*i32", "statistics": "*fp32", "normalised": "*bf16", "targets": "*fp32"}
place = kernel.arg_names.index
for capability in (80, 90, 100):
    for layout, patch, frames in [("last", 32, 1), *product(("last", "first"), (14, 16), (1, 16))]:
        sizes = {"FRAMES": frames, "HEIGHT": 224, "WIDTH": 224, "PATCH": patch, "CELL": cell_of(patch)}
        sizes |= {"CHANNELS_LAST": layout == "last"}
        types = pointers | {"masked": "i32"} | dict.fromkeys(sizes, "constexpr")
        source = ASTSource(
            kernel,
            {name: types[name] for name in kernel.arg_names},
            {(place(name),): value for name, value in sizes.items()},
            {(place(name),): [["tt.divisibility", 16]] for name in pointers},
        )
        binary = triton.compile(source, GPUTarget("cuda", capability, 32), {"num_warps": 1}).asm["cubin"]
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(binary)
            file.flush()
            tool = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
            usage = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
        registers, stack, local = (re.search(rf"\\b{name}:(\\d+)", usage)[1] for name in ("REG", "STACK", "LOCAL"))
        print(capability, layout, patch, frames, registers, stack, local)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings its assembler for Linux only")
def test_compiles_for_gpus_without_spilling_registers(tmp_path: Path) -> None:
    """Spilled registers lie on the stack. With 64 of them, an SM holds as many programs of one warp as it can: 32.

    The interpreter takes more than the compiler does, too.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    compiled = subprocess.run(
        [sys.executable, "-c", COMPILE],
        cwd=Path(__file__).resolve().parents[2],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert compiled.returncode == 0, compiled.stderr
    lines = [line.split() for line in compiled.stdout.splitlines()]
    used = {tuple(line[:4]): tuple(map(int, line[4:])) for line in lines}
    capabilities = ("80", "90", "100")
    small = set(product(capabilities, ("last", "first"), ("14", "16"), ("1", "16")))
    large = {(capability, "last", "32", "1") for capability in capabilities}
    assert used.keys() == small | large
    for key, (registers, stack, local) in used.items():
        most = 64 if key in small else 128
        assert registers <= most and local == 0, (key, registers, local)
        assert stack <= (24 if key == ("100", "last", "32", "1") else 0), (key, stack)


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_an_example_is_the_same_on_a_gpu_and_made_without_waiting_for_it(memory_format: torch.memory_format) -> None:
    images, keys = draw((8, 3, 224, 224), "noise").to(memory_format=memory_format), torch.arange(8)
    examples = hog_examples(14, 14, compile=True)
    expected = examples.example(images, keys)
    on_gpu = images.cuda(), keys.cuda()
    examples.example(*on_gpu)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        example = examples.example(*on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(example.mask.cells.cpu(), expected.mask.cells)
    torch.testing.assert_close(example.targets.cpu(), expected.targets, atol=1e-5, rtol=0)
    torch.testing.assert_close(example.inputs.cpu(), expected.inputs, atol=1e-6, rtol=0)
