"""Runs on inputs that are not square: resumed, probed, drawn, exported, and fine-tuned at other sizes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from labelled import labelled_shards
from launching import assert_same_weights, finetune, last_checkpoint, metrics, pretrain, small_recipe
from PIL import Image
from scripting import run_script
from torch import Tensor
from torch.nn import functional as F

from model.weights import WeightsError
from pipeline.build import build_model
from pipeline.data.exact import ExactData
from pipeline.data.training_data import Part
from pipeline.estimate import costs
from pipeline.pixels import normalise
from pipeline.probe.source import of_run, of_weights
from pipeline.settings import ConfigError
from pipeline.trained import open_trained

WIDE = ("data.image_size=[64, 96]", "optim.batch_size=8", "optim.warmup_epochs=0")
CLIPS = ("data.frames=4", "data.sampling=stride", "data.stride=2", "data.image_size=[32, 64]")
OPTIONS = {"embed_dim": 32, "depth": 4, "num_heads": 1}
MVIT = {"embed_dim": 16, "depth": 3, "num_heads": 1, "stages": [1], "q_stride_blocks": [1]}
VISIBLE = ("model.decoder_width=32", "mask.kind=random", "mask.ratio=0.75", "model.position_init=fixed")
VARIANTS = {
    "paper": (),
    "light": ("model.decoder=light", *VISIBLE),
    "local": (
        f"model.options={json.dumps(OPTIONS)}",
        *("model.decoder=local", "target.kind=hog_scales", "mask.repeats=2"),
        *VISIBLE,
    ),
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = {"blue": 8, "green": 8, "red": 8}
    return labelled_shards(tmp_path_factory.mktemp("labelled"), {"train": counts})["train"]


@pytest.fixture(scope="module")
def run(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper's variant, with validation, pictures and probes."""
    folder = tmp_path_factory.mktemp("wide") / "run"
    watched = (f"data.validation={labelled}", "run.eval_every=2", "run.probe_every=4")
    pretrain(labelled, folder, *WIDE, *watched, "run.max_steps=4")
    return folder


@pytest.fixture
def pixels() -> Tensor:
    return torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_resumes_bit_for_bit(variant: str, labelled: Path, tmp_path: Path) -> None:
    options = (*WIDE, *VARIANTS[variant])
    pretrain(labelled, tmp_path / "whole", *options, "run.max_steps=4")
    for steps in (2, 4):
        pretrain(labelled, tmp_path / "parts", *options, f"run.max_steps={steps}")
    whole, parts = metrics(tmp_path / "whole"), metrics(tmp_path / "parts")
    assert len(whole) == 4 and [line["loss"] for line in parts] == [line["loss"] for line in whole]
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize(
    "network",
    [
        ("model.position_init=fixed",),
        ("model.name=mvit_v2", "model.position_init=random", f"model.options={json.dumps(MVIT)}"),
    ],
    ids=["tubelets", "MViT"],
)
def test_a_run_on_clips_resumes_bit_for_bit(network: tuple[str, ...], video_shards: Path, tmp_path: Path) -> None:
    options = (*CLIPS, "optim.batch_size=4", "optim.warmup_epochs=0", *network)
    pretrain(video_shards, tmp_path / "whole", *options, "run.max_steps=2", f"data.validation={video_shards}")
    for steps in (1, 2):
        pretrain(video_shards, tmp_path / "parts", *options, f"run.max_steps={steps}")
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")
    with Image.open(tmp_path / "whole/pictures/step-00000002.png") as sheet:
        assert sheet.width > sheet.height / 8


def test_crops_are_those_of_the_boxes_and_not_squashed(labelled: Path, tmp_path: Path) -> None:
    """Boxes have the ratio of the inputs, within torchvision's range; those of validation have it exactly."""
    recipe = small_recipe(labelled, tmp_path, "data.image_size=[32, 64]", "data.crop_scale=[0.2, 0.4]")
    data = ExactData(recipe.data, Part(8, 8, 0, CPU))
    ratios = []
    for batch in data.batches(0, 4):
        assert batch.inputs.shape == (8, 3, 32, 64)
        ratios += (batch.request.boxes[:, 3] / batch.request.boxes[:, 2]).tolist()
    data.close()
    assert 1.4 < min(ratios) < 1.7 and 2.3 < max(ratios) < 2.8


def test_a_run_is_validated_probed_and_drawn(run: Path) -> None:
    assert {"val_loss", "probe_linear", "probe_knn", "attended_tokens"} <= metrics(run)[-1].keys()
    with Image.open(run / "pictures/step-00000004.png") as sheet:
        assert sheet.width == 4 * 3 * 96 + 3 * 6  # four panels, three times as large as the images, and the gaps


def test_the_export_equals_the_encoder_bit_for_bit(
    run: Path, tmp_path: Path, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_script(monkeypatch, "export.py", run, tmp_path, "--format", "timm", "maskfeat") == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 64, 96] and config["model_args"]["img_size"] == [64, 96]
    assert "for 64x96 images" in (tmp_path / "README.md").read_text()
    trained = open_trained(str(run))
    network = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        theirs = network(normalise(pixels, torch.float32))
    assert torch.equal(trained.features(pixels), theirs) and theirs.std() > 0.01

    whole = open_trained(str(tmp_path))  # its maskfeat.json comes first
    assert whole.model is not None and whole.recipe.data.size == (64, 96)
    assert torch.equal(whole.features(pixels), theirs)
    (tmp_path / "maskfeat.json").unlink()
    source = of_weights(str(tmp_path), False, ["data.shards=unread"])
    assert source.recipe.data.size == (64, 96) and not any("resampled" in note for note in source.notes)
    assert torch.equal(source.encoder.pooled(normalise(pixels, torch.float32)), theirs)


def test_positions_of_a_run_are_resampled_for_another_size(run: Path) -> None:
    own = last_checkpoint(run).weights()["encoder.pos_embed"]
    for size, grid in (("64", (4, 4)), ("[96, 64]", (6, 4)), ("[64, 96]", (4, 6))):
        found = of_run(run, last_checkpoint(run), [f"data.image_size={size}"]).encoder.network.pos_embed
        places = own[0, 1:].view(4, 6, -1).permute(2, 0, 1)[None]
        wanted = F.interpolate(places, grid, mode="bicubic", antialias=True)[0].flatten(1).T
        torch.testing.assert_close(found[0, 1:], wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("recipe", [{}, {"data": {"image_size": "wide"}}])
def test_a_checkpoint_whose_recipe_has_no_size_is_not_probed(recipe: dict[str, Any], run: Path) -> None:
    found = last_checkpoint(run)
    spoilt = replace(found, facts=replace(found.facts, recipe=recipe))
    with pytest.raises(WeightsError, match=r"step-00000004: its recipe is invalid; choose another --step$"):
        of_run(run, spoilt, [])


@pytest.mark.parametrize("size", ["[96, 160]", "96"])
def test_fine_tuning_takes_any_size(size: str, run: Path, labelled: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    monkeypatch = pytest.MonkeyPatch()
    assert run_script(monkeypatch, "export.py", run, weights) == 0
    monkeypatch.undo()
    options = "model.options={embed_dim: 32, depth: 2, num_heads: 1}"
    settings = (f"data.image_size={size}", f"model.init={weights}", options, "optim.batch_size=8", "run.max_steps=2")
    finetune(labelled, labelled, tmp_path / "run", *settings, "run.eval_every=2")
    assert {"val_top1", "val_top5"} <= metrics(tmp_path / "run")[-1].keys()


def test_predictions_are_drawn_unsquashed(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for name, sides in (("wide", (60, 120)), ("upright", (120, 60))):
        Image.fromarray(rng.integers(0, 256, (*sides, 3), np.uint8)).save(tmp_path / f"{name}.png")
    images = [tmp_path / "wide.png", tmp_path / "upright.png"]
    assert run_script(monkeypatch, "predict.py", *images, "--weights", run, "--out", tmp_path / "sheet.png") == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 2 * 18 + 6 * 288 + 5 * 14 and sheet.height < 2 * (192 + 60) + 60


def test_a_grid_that_a_scale_does_not_fill_is_one_line(labelled: Path, tmp_path: Path) -> None:
    local = (*WIDE, *VARIANTS["local"])
    with pytest.raises(ConfigError, match=r"2x2 patches, which do not fill a grid of 4x5: change data\.image_size$"):
        build_model(small_recipe(labelled, tmp_path, *local, "data.image_size=[64, 80]"))
    with pytest.raises(ConfigError, match=r"^data\.image_size=\[64, 90\] is not a multiple of the 16-pixel patch"):
        build_model(small_recipe(labelled, tmp_path, "data.image_size=[64, 90]"))


def test_the_cost_is_that_of_as_many_patches(labelled: Path, tmp_path: Path) -> None:
    """A grid of 4x9 costs as much as one of 6x6, of which the same number of patches is masked."""
    wide, square = (costs(small_recipe(labelled, tmp_path, f"data.image_size={size}")) for size in ("[64, 144]", "96"))
    assert wide == square
