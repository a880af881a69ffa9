"""Pixels and a teacher's features as targets: against plain numpy and plain timm, and in runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from launching import SMALL, launch, losses, metrics, pretrain, small_recipe
from making import mask_of
from numpy.typing import NDArray
from PIL import Image
from scripting import Hostile
from teachers import write_teacher
from timm.models import save_for_hf
from torch import nn

from pipeline.build import build_examples, build_model
from pipeline.checkpoints.checkpoint import CheckpointError
from pipeline.config import load_recipe
from pipeline.pixels import IMAGENET
from pipeline.settings import ConfigError
from pipeline.targets.features import Features
from pipeline.targets.pixels import Pixels, pixel_target
from pipeline.targets.teacher import TeacherError, load_teacher

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teachers") / "vit"
    write_teacher(folder)
    return folder


def random_images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def by_numpy(patch: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Compute the target of (3, side, side) with NumPy."""
    pixels = (patch / 255 - np.reshape(IMAGENET.mean, (3, 1, 1))) / np.reshape(IMAGENET.std, (3, 1, 1))
    normalised: NDArray[np.float64] = (pixels - pixels.mean()) / np.sqrt(pixels.var(ddof=1) + 1e-6)
    return normalised.ravel()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_pixel_target_equals_numpy(memory_format: torch.memory_format) -> None:
    images = random_images(2, 3, 32, 48).to(memory_format=memory_format)
    mask = torch.tensor([[[1, 0, 1], [0, 0, 1]], [[0, 1, 1], [1, 0, 0]]]).bool()
    targets = Pixels(16).describe(images, mask_of(mask))
    places = [(image, row, column) for image, row, column in mask.nonzero().tolist()]
    wanted = [by_numpy(images[i, :, r * 16 : r * 16 + 16, c * 16 : c * 16 + 16].numpy()) for i, r, c in places]
    assert targets.dtype == torch.float32
    np.testing.assert_allclose(targets, np.stack(wanted), atol=1e-5)


def test_pixel_target_of_one_colour_is_that_colour_and_no_rounding_noise() -> None:
    """Test black, white, ImageNet's mean, and the colours whose normalised channels agree best."""
    values = np.arange(256)
    red, green, blue = ((values / 255 - mean) / std for mean, std in zip(*IMAGENET, strict=True))
    nearest = [np.abs(channel[None] - red[:, None]) for channel in (green, blue)]
    order = np.argsort(nearest[0].min(1) + nearest[1].min(1))[:5]
    colours = [(0, 0, 0), (255, 255, 255), (124, 116, 104)]
    colours += [(int(r), int(nearest[0][r].argmin()), int(nearest[1][r].argmin())) for r in order]
    images = torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 16, 16)
    targets = pixel_target(images, 16, torch.arange(len(colours)))
    wanted = np.stack([by_numpy(image) for image in images.numpy()])
    assert np.abs(wanted[-5:]).max() < 1.5  # of the agreeing ones none is blown up
    np.testing.assert_allclose(targets, wanted, atol=2e-4)
    channels = targets.view(len(colours), 3, -1)
    assert torch.equal(channels, channels[..., :1].expand_as(channels))  # bit for bit: nothing in them but the colour


def test_painted_pixels_are_the_image() -> None:
    images, target = random_images(2, 3, 32, 48), Pixels(16)
    images[0, :, :16, :16] = 77
    truth = target.describe(images, mask_of(torch.ones(2, 2, 3).bool())).view(2, 2, 3, -1)
    np.testing.assert_allclose(target.paint(images, truth) * 255, images, atol=0.01)
    mean = target.paint(images, truth, torch.zeros_like(truth))[1, :, :16, :16]  # of a patch, in normalised units
    normalised = [(mean[channel] - IMAGENET.mean[channel]) / IMAGENET.std[channel] for channel in range(3)]
    assert torch.stack(normalised).std() < 1e-5


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224", "vit_small_patch16_dinov3"])
def test_features_are_timms_own(name: str, tmp_path: Path) -> None:
    """Images are normalised as the teacher requires, with 0.5 for the first two."""
    plain = write_teacher(tmp_path / "teacher", name)
    images = random_images(2, 3, 64, 64)
    mean, std = (torch.tensor(plain.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert (plain.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)) == ("dinov3" not in name)
    with torch.no_grad():
        tokens = plain.forward_features((images / 255 - mean) / std)[:, plain.num_prefix_tokens :].numpy()
    mask = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    centred = tokens - tokens.mean(-1, keepdims=True)
    wanted = {
        "cosine": tokens / np.linalg.norm(tokens, axis=-1, keepdims=True),
        "mse": centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-5),
    }
    for loss, values in wanted.items():
        target = Features(load_teacher(str(tmp_path / "teacher"), None), (4, 4), loss, torch.float32, CPU)  # type: ignore[arg-type]
        targets = target.describe(images, mask_of(mask))
        np.testing.assert_allclose(targets, values[mask.flatten(1).numpy()], atol=2e-5)


def test_a_teacher_computes_in_the_precision_of_the_model(teacher: Path) -> None:
    images, mask = random_images(2, 3, 64, 64), torch.ones(2, 4, 4).bool()
    exact, rounded = (
        Features(load_teacher(str(teacher), None), (4, 4), "cosine", dtype, CPU).describe(images, mask_of(mask))
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    assert (rounded * exact).sum(1).min() > 0.999


def test_a_teacher_sees_the_grid_of_the_model(tmp_path: Path) -> None:
    """Positions for another grid as timm resamples them, and images resized for another patch."""
    write_teacher(tmp_path / "teacher", patch_size=8)
    wide = timm.create_model(f"local-dir:{tmp_path / 'teacher'}", pretrained=True, img_size=(24, 40)).eval()
    target = Features(load_teacher(str(tmp_path / "teacher"), None), (3, 5), "cosine", torch.float32, CPU)
    images = torch.full((1, 3, 48, 80), 200, dtype=torch.uint8)
    with torch.no_grad():
        tokens = wide.forward_features(torch.full((1, 3, 24, 40), (200 / 255 - 0.5) / 0.5))[0, 1:].numpy()
    targets = target.describe(images, mask_of(torch.ones(1, 3, 5).bool()))
    np.testing.assert_allclose(targets, tokens / np.linalg.norm(tokens, axis=-1, keepdims=True), atol=2e-5)


def test_nothing_trains_the_teacher_and_nothing_is_drawn(tmp_path: Path) -> None:
    write_teacher(tmp_path / "teacher", drop_path_rate=0.5, proj_drop_rate=0.5)
    teacher = load_teacher(str(tmp_path / "teacher"), None)
    target = Features(teacher, (4, 4), "cosine", torch.float32, CPU)
    images, mask = random_images(2, 3, 64, 64), torch.ones(2, 4, 4).bool()
    targets, again = (target.describe(images, mask_of(mask)) for _ in range(2))
    assert torch.equal(targets, again)
    predictions = torch.ones(32, 48, requires_grad=True)
    target.losses(predictions, targets, 2).sum().backward()
    assert predictions.grad is not None and predictions.grad.abs().sum() > 0
    assert not targets.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_losses_of_features(teacher: Path) -> None:
    cosine, mse = (
        Features(load_teacher(str(teacher), None), (4, 4), loss, torch.float32, CPU)  # type: ignore[arg-type]
        for loss in ("cosine", "mse")
    )
    targets = nn.functional.normalize(torch.randn(6, 48), dim=-1)
    for predictions, want in ((torch.zeros(6, 48), 1), (3 * targets, 0), (-targets, 2)):
        assert cosine.losses(predictions, targets, 2).tolist() == pytest.approx([want] * 2, abs=1e-6)
    predictions = torch.randn(6, 48)
    one_by_one = (predictions - targets).square().double().numpy()
    assert mse.losses(predictions, targets, 2).tolist() == pytest.approx(
        [one_by_one[:3].mean(), one_by_one[3:].mean()], rel=1e-5
    )


def test_weights_from_a_file_are_those_of_the_folder(tmp_path: Path) -> None:
    """The identity is that of the weights, and the normalisation that of the name."""
    model = timm.create_model("vit_tiny_patch16_224")
    save_for_hf(model, str(tmp_path / "folder"), safe_serialization=True)
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    images, mask = random_images(1, 3, 64, 64), torch.ones(1, 4, 4).bool()
    made = []
    for name, weights in ((str(tmp_path / "folder"), None), ("vit_tiny_patch16_224", tmp_path / "weights.pth")):
        target = Features(load_teacher(name, weights), (4, 4), "cosine", torch.float32, CPU)
        made.append((target.identity, target.describe(images, mask_of(mask))))
    assert made[0][0] == made[1][0] and torch.equal(made[0][1], made[1][1])
    with pytest.raises(TeacherError, match="has weights of its own"):
        load_teacher(str(tmp_path / "folder"), tmp_path / "weights.pth")
    torch.save({"model": {key: model.state_dict()[key] for key in ("cls_token", "pos_embed")}}, tmp_path / "cut.pth")
    with pytest.raises(TeacherError, match=r"cannot be loaded.*Missing key.*patch_embed\.proj\.weight"):
        load_teacher("vit_tiny_patch16_224", tmp_path / "cut.pth")
    torch.save(Hostile(tmp_path / "ran"), tmp_path / "hostile.pth")
    with pytest.raises(TeacherError, match="contains more than tensors"):
        load_teacher("vit_tiny_patch16_224", tmp_path / "hostile.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["target.kind=features"], "needs target.teacher: set it"),
        (
            ["target.kind=pixels", "target.teacher=vit_tiny_patch16_224"],
            "does not use target.teacher: leave it out, or set target.kind to features",
        ),
        (["target.kind=features", "target.teacher=nothing"], "neither a folder nor a model of timm's"),
        (["target.kind=features", "target.teacher=vit_tiny_patch16_224.nothing"], "nothing"),
    ],
)
def test_what_has_no_target_is_refused_before_anything_starts(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        build_model(load_recipe("demo", ["data.shards=/nowhere", *overrides]))
    assert "\n" not in str(error.value)


def test_a_network_without_patch_tokens_is_no_teacher(tmp_path: Path) -> None:
    save_for_hf(timm.create_model("resnet18"), str(tmp_path), safe_serialization=True)
    overrides = ["target.kind=features", f"target.teacher={tmp_path}", "data.shards=/nowhere", "data.image_size=64"]
    recipe = load_recipe("demo", overrides)
    with pytest.raises(
        ConfigError, match="ResNet does not have a token for each of 4x4 patches: choose a plain vision"
    ):
        build_examples(recipe, build_model(recipe), torch.float32, CPU)


@pytest.mark.parametrize("kind", ["pixels", "features"])
def test_a_run_learns_and_resumes_bit_for_bit(shards: Path, tmp_path: Path, teacher: Path, kind: str) -> None:
    settings = ["optim.warmup_epochs=0", f"target.kind={kind}"]
    validation = [f"data.validation={shards}", "data.validation_samples=16"]
    if kind == "features":
        settings.append(f"target.teacher={teacher}")
    pretrain(shards, tmp_path / "whole", *settings, *validation, "run.max_steps=12")
    pretrain(shards, tmp_path / "parts", *settings, "run.max_steps=6")
    pretrain(shards, tmp_path / "parts", *settings, "run.max_steps=12")
    whole, parts = metrics(tmp_path / "whole"), metrics(tmp_path / "parts")
    for key in ("loss", "grad_norm"):
        assert [line[key] for line in parts] == [line[key] for line in whole], key
    learned = [line["loss"] for line in whole]
    assert np.mean(learned[-4:]) < np.mean(learned[:4]) - 0.02

    baselines = json.loads((tmp_path / "whole" / "baselines.json").read_text())
    assert baselines["zero"] == pytest.approx(1, abs=0.02)  # of one variance or length, but for flat patches
    assert baselines["mean"] < baselines["zero"]
    sheet = np.asarray(Image.open(tmp_path / "whole" / "pictures" / "step-00000012.png"))
    assert sheet.shape == (26 + 4 * 96 + 3 * 6, 4 * 96 + 3 * 6, 3)
    truth, predicted = sheet[26:122, 204:300].astype(float), sheet[26:122, 306:].astype(float)
    hidden = (sheet[26:122, 102:198] == 110).all(-1)
    np.testing.assert_allclose(predicted[~hidden], truth[~hidden] * 0.3, atol=1)
    if kind == "pixels":
        np.testing.assert_array_equal(truth, sheet[26:122, :96])


def test_a_run_is_bound_to_its_target(shards: Path, tmp_path: Path, teacher: Path) -> None:
    """To the weights of the teacher, not to their place."""
    run, settings = tmp_path / "run", ["target.kind=features", "run.max_steps=2"]
    pretrain(shards, run, *settings, f"target.teacher={teacher}")
    write_teacher(tmp_path / "moved")
    pretrain(shards, run, "target.kind=features", "run.max_steps=3", f"target.teacher={tmp_path / 'moved'}")
    assert list(losses(run)) == [1, 2, 3]
    write_teacher(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"target\.teacher was [0-9a-f]{64}, now [0-9a-f]{64}\)"):
        pretrain(shards, run, *settings, f"target.teacher={tmp_path / 'other'}")
    with pytest.raises(CheckpointError, match=r"target\.loss was cosine, now mse\)"):
        pretrain(shards, run, *settings, f"target.teacher={teacher}", "target.loss=mse")
    with pytest.raises(CheckpointError, match=r"target\.kind was features, now pixels"):
        pretrain(shards, run, "target.kind=pixels", "run.max_steps=3")


def test_two_ranks_equal_one(shards: Path, tmp_path: Path, teacher: Path) -> None:
    settings = ["target.kind=features", f"target.teacher={teacher}", "run.max_steps=4"]
    launch(shards, tmp_path / "two", *settings)
    pretrain(shards, tmp_path / "one", *settings)
    one, two = (list(losses(tmp_path / name).values()) for name in ("one", "two"))
    np.testing.assert_allclose(two, one, atol=1e-5)


def test_the_width_of_the_head_is_that_of_the_target(tmp_path: Path, teacher: Path) -> None:
    features = [*SMALL, "data.shards=none", "target.kind=features", f"target.teacher={teacher}"]
    assert build_model(load_recipe("demo", features)).head.out_features == 48
    assert build_model(small_recipe("none", tmp_path, "target.kind=pixels")).head.out_features == 768
    assert build_model(small_recipe("none", tmp_path)).head.out_features == 108
    absent = load_recipe("demo", [*features, f"target.teacher={tmp_path / 'absent'}"])
    assert build_model(absent, width=48).head.out_features == 48  # to export it, no teacher is needed
