"""HOG at four scales: against the target of one scale, and the kernel against the reference."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.layout import Layout, make_mask
from pipeline.pixels import IMAGENET, normalise
from pipeline.targets.hog import hog_target
from pipeline.targets.hog.arithmetic import histograms, in_patches, unit_length
from pipeline.targets.hog.scales import WIDTH, WIDTHS, HogScales, hog_scales
from pipeline.targets.hog.scales_triton import normalised_and_scales
from pipeline.targets.target import Computing, Predictions, TargetSettings

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


def draw(*shape: int) -> torch.Tensor:
    torch.manual_seed(0)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    images[..., : shape[-1] // 4] = 77  # flat cells at some scales, and next to them a border
    return images


@pytest.mark.parametrize("patch", [8, 16, 32])
def test_each_scale_is_the_hog_of_cells_of_that_size(patch: int) -> None:
    """From pixels, not by sums: of a quarter, half, one and two patches."""
    images = draw(2, 3, 64, 128)
    found = hog_scales(images, patch)
    assert found.shape == (2, 64 * 128 // patch**2, WIDTH)
    for scale, cell, side in zip(found.split(WIDTHS, 2), (patch // 4, patch // 2, patch), (4, 2, 1), strict=False):
        direct = in_patches(unit_length(histograms(images, cell)), side)
        torch.testing.assert_close(scale, direct, atol=2e-7, rtol=0)
    coarsest = unit_length(histograms(images, 2 * patch))
    spread = in_patches(coarsest.repeat_interleave(2, -1).repeat_interleave(2, -2), 1)
    torch.testing.assert_close(found.split(WIDTHS, 2)[3], spread, atol=2e-7, rtol=0)


def test_the_scale_of_the_paper_is_its_target() -> None:
    images = draw(2, 3, 64, 64)
    second = hog_scales(images)[..., WIDTHS[0] : WIDTHS[0] + WIDTHS[1]]
    torch.testing.assert_close(second, hog_target(images), atol=2e-7, rtol=0)


def test_the_loss_sums_four_means_and_a_cell_of_four_patches_weighs_its_masked_share() -> None:
    torch.manual_seed(1)
    target = HogScales(16, compile=False)
    images, cells = draw(3, 3, 64, 64), torch.rand(3, 16).argsort(1).view(3, 4, 4) < 7
    mask = make_mask(cells, Layout(1, 4, 4))
    targets = target.describe(images, mask)
    guess = torch.randn(3, 16, WIDTH)
    guess[..., -27:] = (
        guess.view(3, 2, 2, 2, 2, WIDTH)[:, :, :1, :, :1, -27:].expand(-1, -1, 2, -1, 2, -1).reshape(3, 16, 27)
    )  # of a square there is one guess
    found = target.losses(guess.flatten(0, 1)[mask.indices], targets, 3)
    for image in range(3):
        error = (guess[image] - hog_scales(images)[image]).square()
        hidden = cells[image].flatten()
        expected = sum(part[hidden].mean() for part in error.split(WIDTHS, 1)[:3])
        square = error[..., -27:].mean(1).view(2, 2, 2, 2)[:, 0, :, 0]
        share = cells[image].view(2, 2, 2, 2).float().mean((1, 3))
        expected = expected + (square * share).sum() / share.sum()
        torch.testing.assert_close(found[image], expected)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="grid of 3x4"):
        hog_scales(draw(1, 3, 48, 64))
    with pytest.raises(ValueError, match="8, 16 or 32 pixels, not of 24"):
        hog_scales(draw(1, 3, 48, 48), 24)
    with pytest.raises(ValueError, match="uint8"):
        hog_scales(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="do not divide"):
        hog_scales(draw(1, 3, 40, 36))
    with pytest.raises(ValueError, match=r"grid of 3x3: change data\.image_size"):
        HogScales.output_width(TargetSettings(kind="hog_scales"), Predictions(Layout(1, 3, 3), (1, 16, 16)))


def test_compiled_is_the_same() -> None:
    images = draw(2, 3, 64, 64)
    mask = make_mask(torch.ones(2, 4, 4, dtype=torch.bool), Layout(1, 4, 4))
    predictions = Predictions(Layout(1, 4, 4), (1, 16, 16))
    one, other = (
        HogScales.build(
            TargetSettings(kind="hog_scales"), predictions, Computing(torch.float32, torch.device("cpu"), c)
        )
        for c in (False, True)
    )
    torch.testing.assert_close(other.describe(images, mask), one.describe(images, mask), atol=2e-6, rtol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("patch", [8, 16, 32])
def test_the_kernel_equals_the_reference(patch: int, memory_format: torch.memory_format) -> None:
    images = draw(2, 3, 2 * patch, 4 * patch).to(memory_format=memory_format)
    mask = make_mask(torch.rand(2, 2, 4) < 0.6, Layout(1, 2, 4))
    pixels, targets = normalised_and_scales(
        images.to(DEVICE), type(mask)(*(part.to(DEVICE) for part in mask)), patch, *IMAGENET, torch.float32
    )
    expected = hog_scales(images, patch).flatten(0, 1)[mask.indices]
    torch.testing.assert_close(targets.cpu(), expected, atol=2e-6, rtol=0)
    assert torch.equal(targets.cpu() == 0, expected == 0)
    torch.testing.assert_close(pixels.cpu(), normalise(images, torch.float32), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("frames", "step"), [(4, 2), (3, 2)])
def test_the_kernel_describes_frames_of_clips(frames: int, step: int) -> None:
    clips = draw(2, 3, frames, 32, 64)
    described = clips[:, :, ::step].transpose(1, 2).flatten(0, 1)
    mask = make_mask(torch.rand(len(described), 2, 4) < 0.5, Layout(1, 2, 4))
    pixels, targets = normalised_and_scales(
        clips.to(DEVICE), type(mask)(*(part.to(DEVICE) for part in mask)), 16, *IMAGENET, torch.float32, step
    )
    expected = hog_scales(described).flatten(0, 1)[mask.indices]
    torch.testing.assert_close(targets.cpu(), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(pixels.cpu(), normalise(clips, torch.float32), atol=1e-6, rtol=0)


COMPILE = """
import re, subprocess, tempfile
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from pipeline.targets.hog.scales_triton import _one_patch as kernel

pointers = dict.fromkeys(("statistics", "targets", "sums"), "*fp32")
pointers |= {"images": "*u8", "row": "*i32", "normalised": "*bf16"}
place = kernel.arg_names.index
for capability in (80, 90, 100):
    for last, frames in ((True, 1), (False, 16)):
        sizes = {"FRAMES": frames, "STEP": min(frames, 2), "HEIGHT": 224, "WIDTH": 224, "PATCH": 16}
        sizes["CHANNELS_LAST"] = last
        types = pointers | dict.fromkeys(sizes, "constexpr")
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
        print(capability, last, *(re.search(rf"\\b{name}:(\\d+)", usage)[1] for name in ("REG", "STACK", "LOCAL")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings its assembler for Linux only")
def test_compiles_for_gpus_without_spilling_registers(tmp_path: Path) -> None:
    """With 96 registers, an SM holds 20 programs of one warp."""
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
    assert len(lines) == 6
    for capability, last, registers, stack, local in lines:
        assert int(registers) <= (96 if last == "True" else 64), (capability, last, registers)
        assert (int(stack), int(local)) == (0, 0), (capability, last, stack, local)
