"""Weights of every kind are opened as the trained encoder, and the whole model where they hold it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from launching import last_checkpoint, pretrain
from resuming import OLD
from safetensors.torch import load_file, save_file
from scripting import run_script
from timm.models import save_for_hf

from model.classifier import Classifier
from model.convert import fill
from model.encoders.timm_vit import build_encoder
from model.layout import make_mask
from model.maskfeat import MaskFeat
from model.weights import IMAGENET, Normalisation, WeightsError, read
from model.weights_file import WHOLE_MODEL
from pipeline.build import build_examples
from pipeline.checkpoints.checkpoint import CheckpointError
from pipeline.pixels import normalise
from pipeline.predict.reconstruction import reconstruct
from pipeline.probe.source import of_run, of_weights
from pipeline.settings import ConfigError
from pipeline.trained import load_model, open_trained, recipe_of
from pipeline.whole_model import CONFIG, read_model

IMAGES = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def exported(monkeypatch: pytest.MonkeyPatch, run: Path, out: Path, *formats: str) -> Path:
    assert run_script(monkeypatch, "export.py", run, out, "--format", *formats) == 0
    return out


DECODERS = {
    "the paper's head": ("model.position_init=fixed",),
    "a light decoder": ("model.decoder=light", "model.decoder_width=32"),
    "a local decoder": (
        "model.decoder=local",
        "model.decoder_width=32",
        "target.kind=hog_scales",
        "model.options={embed_dim: 32, depth: 4, num_heads: 1}",
    ),
}


@pytest.mark.parametrize("settings", DECODERS.values(), ids=DECODERS)
def test_the_whole_model_predicts_as_the_run_did(
    settings: tuple[str, ...], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions are the same bit for bit, and so are the targets that the exported settings make."""
    pretrain(shards, tmp_path / "run", *settings, "run.max_steps=2", "mask.ratio=0.5")
    found = last_checkpoint(tmp_path / "run")
    trained = load_model(found, recipe_of(found))
    assert isinstance(trained, MaskFeat)
    out = exported(monkeypatch, tmp_path / "run", tmp_path / "out", "maskfeat")
    _, model = read_model(out)
    pixels = normalise(IMAGES, torch.float32)
    cells = torch.tensor([[[True, False], [False, True]]] * 3)
    mask = make_mask(cells, model.view.prediction_layout)
    with torch.no_grad():
        predictions = model(pixels, mask)
        assert torch.equal(predictions, trained(pixels, mask)) and predictions.std() > 0
    first, second = (
        build_examples(one, of, torch.float32, torch.device("cpu")).example(IMAGES, torch.arange(3))
        for one, of in ((open_trained(str(out)).recipe, model), (open_trained(str(tmp_path / "run")).recipe, trained))
    )
    assert torch.equal(first.targets, second.targets) and torch.equal(first.mask.cells, second.mask.cells)
    assert model.target_width == first.targets.shape[1]
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == (["encoder.pos_embed"] if "model.position_init=fixed" in settings else [])


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return exported(monkeypatch, OLD / "pretrain", tmp_path / "whole", "timm", "maskfeat")


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    stated = json.loads((folder / CONFIG).read_text())
    change(stated)
    (folder / CONFIG).write_text(json.dumps(stated))


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WHOLE_MODEL)
    change(tensors)
    save_file(tensors, folder / WHOLE_MODEL)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda folder: (folder / WHOLE_MODEL).unlink(), "there is no weights file"),
    "damaged weights": (lambda folder: (folder / WHOLE_MODEL).write_bytes(b"\x10" + bytes(7) + b"{"), "is damaged"),
    "other weights": (
        lambda folder: save_file({"x": torch.zeros(1)}, folder / WHOLE_MODEL),
        "does not fit maskfeat.json beside it",
    ),
    "a tensor is missing": (
        lambda folder: spoil(folder, lambda tensors: tensors.pop("head.bias")),
        "read with the names of this project: missing head.bias",
    ),
    "numbers that are not finite": (
        lambda folder: spoil(folder, lambda tensors: tensors["mask_token"].fill_(torch.nan)),
        "mask_token contains NaN or infinity",
    ),
    "whole numbers": (
        lambda folder: spoil(folder, lambda tensors: tensors.update(mask_token=tensors["mask_token"].int())),
        "mask_token contains int32 instead of floating-point numbers",
    ),
    "another format": (lambda folder: changed(folder, lambda s: s.update(format="x")), "does not describe a MaskFeat"),
    "a later version": (lambda folder: changed(folder, lambda s: s.update(version=9)), "of this version"),
    "no width": (lambda folder: changed(folder, lambda s: s.pop("target_width")), "does not describe a MaskFeat"),
    "an infinite width": (
        lambda folder: changed(folder, lambda s: s.update(target_width=torch.inf)),
        "does not describe a MaskFeat",
    ),
    "a deviation beyond numbers": (
        lambda folder: changed(folder, lambda s: s.update(std=[10**400] * 3)),
        "does not describe a MaskFeat",
    ),
    "a list": (lambda folder: (folder / CONFIG).write_text("[]"), "does not describe a MaskFeat"),
    "a setting of something else": (
        lambda folder: changed(folder, lambda s: s["settings"].update({"model.init": "/etc/passwd"})),
        "unknown setting model.init",
    ),
}


@pytest.mark.parametrize(("damage", "message"), WRONG.values(), ids=WRONG)
def test_damage_is_one_line(damage: Callable[[Path], object], message: str, whole: Path) -> None:
    damage(whole)
    with pytest.raises(WeightsError) as error:
        open_trained(str(whole))
    assert message in str(error.value) and str(whole) in str(error.value) and "\n" not in str(error.value)


def test_pre_training_continues_from_the_whole_model(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step's rate is 0, so what `model.init` gave is saved: mask token and decoder as well.

    The statistics of the pixels are told by maskfeat.json.
    """
    decoder = ("model.decoder=light", "model.decoder_width=32", "model.mean=[0.4, 0.4, 0.4]")
    pretrain(shards, tmp_path / "run", *decoder, "run.max_steps=2")
    out = exported(monkeypatch, tmp_path / "run", tmp_path / "out", "maskfeat")
    pretrain(shards, tmp_path / "again", *decoder, "run.max_steps=1", "optim.warmup_lr=0", f"model.init={out}")
    want, found = (last_checkpoint(tmp_path / run).weights() for run in ("run", "again"))
    assert found.keys() == want.keys() and all(torch.equal(found[name], want[name]) for name in want)
    assert read(out).normalisation == Normalisation((0.4, 0.4, 0.4), IMAGENET.std)
    with pytest.raises(ConfigError, match=r"model\.init: .*unknown decoder"):
        pretrain(shards, tmp_path / "other", "run.max_steps=1", f"model.init={out}")


CLIPS = ("data.image_size=64", "data.frames=4", "data.sampling=stride", "data.stride=2", "model.std=[0.2, 0.2, 0.2]")
FAMILIES = {
    "tubelets": (),
    "tubelets with a light decoder": ("model.decoder=light", "model.decoder_width=32"),
    "MViT": ("model.name=mvit_v2", "model.options={embed_dim: 8, depth: 2, stages: [1]}"),
}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_whole_model_of_clips_is_the_runs(
    family: tuple[str, ...],
    video_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Bit for bit, as a model, as `model.init` and as what is probed; and it is refused for pictures."""
    settings = (*CLIPS, *family, "model.position_init=random", "optim.lr=0.01")
    pretrain(video_shards, tmp_path / "run", *settings, "run.max_steps=2")
    out = exported(monkeypatch, tmp_path / "run", tmp_path / "out", "maskfeat")
    of_run, of_export = open_trained(str(tmp_path / "run")), open_trained(str(out))
    clips = torch.randint(0, 256, (2, 3, 4, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    examples = [
        build_examples(one.recipe, one.model, torch.float32, torch.device("cpu")).example(clips, torch.arange(2))
        for one in (of_run, of_export)
        if one.model
    ]
    with torch.no_grad():
        first, second = (
            one.model(example.inputs, example.mask)
            for one, example in zip((of_run, of_export), examples, strict=True)
            if one.model
        )
    assert torch.equal(first, second) and first.std() > 0
    assert torch.equal(examples[0].targets, examples[1].targets) and examples[0].targets.std() > 0
    assert torch.equal(of_run.features(clips), of_export.features(clips))
    assert of_export.recipe.data.clip == of_run.recipe.data.clip

    probed = of_weights(str(out), False, ["data.shards=unused"])
    want = of_run.encoder.network.state_dict()
    found = probed.encoder.network.state_dict()
    assert found.keys() == want.keys() and all(torch.equal(found[name], want[name]) for name in want)
    assert probed.recipe.data.clip == of_run.recipe.data.clip and probed.recipe.model.std == (0.2, 0.2, 0.2)

    again = (*settings, "run.max_steps=1", "optim.warmup_lr=0", f"model.init={out}")
    pretrain(video_shards, tmp_path / "again", *again)
    before, after = (last_checkpoint(tmp_path / run).weights() for run in ("run", "again"))
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)

    capsys.readouterr()
    assert run_script(monkeypatch, "predict.py", tmp_path / "x.png", "--weights", out) == 2
    error = capsys.readouterr().err
    assert error == f"error: {out} are weights for clips, and pictures are images: give weights for images\n"


def test_fine_tuning_takes_the_encoder_of_the_whole_model(whole: Path) -> None:
    encoder = Classifier(build_encoder("vit_tiny_patch16_224", 32, 3, embed_dim=8, depth=1, num_heads=1))
    fill(encoder, read(whole / WHOLE_MODEL))
    want = open_trained(str(whole)).encoder.network.state_dict()
    assert torch.equal(encoder.encoder.blocks[0].mlp.fc1.weight, want["blocks.0.mlp.fc1.weight"])


def test_a_probe_reads_the_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only = exported(monkeypatch, OLD / "pretrain", tmp_path / "only", "maskfeat")
    trained, untrained = (of_weights(str(only), without, ["data.shards=unused"]) for without in (False, True))
    assert trained.identity() != untrained.identity()
    assert trained.encoder.depth == untrained.encoder.depth == 1 and not untrained.encoder.network.training


def test_a_probe_reads_the_whole_model_at_a_size_that_its_decoder_does_not_fit(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = (*DECODERS["a local decoder"], "model.position_init=random", "data.image_size=64", "mask.kind=random")
    pretrain(shards, tmp_path / "run", *learned, "run.max_steps=2", "mask.ratio=0.5")
    only = exported(monkeypatch, tmp_path / "run", tmp_path / "only", "maskfeat")
    larger = ["data.image_size=80"]  # a grid of 5x5
    for untrained in (False, True):
        found = None if untrained else last_checkpoint(tmp_path / "run")
        want = of_run(tmp_path / "run", found, larger).encoder.network.state_dict()
        got = of_weights(str(only), untrained, ["data.shards=unused", *larger]).encoder.network.state_dict()
        assert got["pos_embed"].shape[1] == 26 and got.keys() == want.keys()
        assert all(torch.equal(got[name], want[name]) for name in want)


def test_paths_are_not_exported(whole: Path) -> None:
    text = (whole / CONFIG).read_text()
    assert "shards" not in text and "run.dir" not in text and "/" not in text


def test_every_kind_of_weights_gives_the_same_features(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And timm itself gives them, too. Only the run and the whole model hold a head."""
    (whole / "only").mkdir()
    encoder = whole / "only" / "model.safetensors"
    save_file(load_file(whole / "model.safetensors"), encoder)
    plain = exported(monkeypatch, OLD / "pretrain", tmp_path / "plain", "timm")
    described = ["model.name=vit_tiny_patch16_224", "data.image_size=32"]
    described.append("model.options={embed_dim: 8, depth: 1, num_heads: 1}")
    opened = {
        "run": open_trained(str(OLD / "pretrain"), step=3),
        "whole": open_trained(str(whole)),
        "timm": open_trained(str(plain)),
        "file": open_trained(str(encoder), overrides=described),
    }
    network = timm.create_model(f"local-dir:{plain}", pretrained=True).eval()
    with torch.no_grad():
        want = network(normalise(IMAGES, torch.float32))
    for name, trained in opened.items():
        assert torch.equal(trained.features(IMAGES), want), name
        assert (trained.model is not None) == (name in ("run", "whole")), name


def test_a_classifier_gives_what_its_head_takes() -> None:
    trained = open_trained(str(OLD / "finetune"))
    found = last_checkpoint(OLD / "finetune")
    classifier = load_model(found, recipe_of(found))
    assert isinstance(classifier, Classifier) and trained.model is None
    with torch.no_grad():
        logits = trained.encoder.head(trained.features(IMAGES))
        assert torch.equal(logits, classifier(normalise(IMAGES, torch.float32)))
    assert trained.classes == ["one", "two"]
    for (name, share), of_image in zip(trained.likeliest(trained.features(IMAGES)), logits.softmax(1), strict=True):
        assert share == pytest.approx(of_image.max().item()) and name == trained.classes[of_image.argmax()]


def test_what_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path) -> None:
    with pytest.raises(ConfigError, match="nor weights, nor the name of a timm model"):
        open_trained(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="only a run has checkpoints"):
        open_trained(str(whole), step=3)
    with pytest.raises(ConfigError, match=r"leave out model\.name=x"):
        open_trained(str(OLD / "pretrain"), overrides=["model.name=x"])
    with pytest.raises(CheckpointError, match="has no checkpoint of step 4"):
        open_trained(str(OLD / "pretrain"), step=4)


def test_a_classifier_has_no_head_of_pretraining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (OLD / "finetune", tmp_path / "out", "--format", "timm", "maskfeat")
    assert run_script(monkeypatch, "export.py", *arguments) == 1
    assert "is a run of fine-tuning" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_targets_file_is_exported_by_its_name_and_given_again(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tmp_path / "secret folder" / "teacher"
    sizes = {"img_size": 32, "embed_dim": 48, "depth": 1, "num_heads": 3}
    save_for_hf(timm.create_model("vit_tiny_patch16_224", **sizes), teacher, safe_serialization=True, model_args=sizes)
    pretrain(shards, tmp_path / "run", "target.kind=features", f"target.teacher={teacher}", "run.max_steps=1")
    out = exported(monkeypatch, tmp_path / "run", tmp_path / "out", "maskfeat")
    assert '"target.teacher": "teacher"' in (out / CONFIG).read_text() and "secret" not in (out / CONFIG).read_text()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="teacher"):
        reconstruct(open_trained(str(out)), IMAGES)
    of_run, of_export = open_trained(str(tmp_path / "run")), open_trained(str(out), None, [f"target.teacher={teacher}"])
    assert torch.equal(reconstruct(of_export, IMAGES).losses, reconstruct(of_run, IMAGES).losses)
