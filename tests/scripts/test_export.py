"""Exports of scripts/export.py, read by other projects' code, and refusals."""

import ast
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from launching import launch, metrics, pretrain, small_recipe
from PIL import Image
from resuming import OLD
from safetensors.torch import load_file
from scripting import Hostile, run_script
from timm.data import create_transform, resolve_model_data_config

from model.classifier import Classifier
from model.maskfeat import MaskFeat, build_encoder
from model.onnx import export_onnx
from pipeline.build import build_model
from pipeline.card import clip_of
from pipeline.checkpoints.checkpoint import read
from pipeline.data.loader import Loader
from pipeline.data.request import validation_requests
from pipeline.data.settings import Data
from pipeline.pixels import Statistics, normalise
from shards.build import build
from shards.manifest import Manifest


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 3 steps at ZeRO 3 on two ranks, with checkpoints at 1, 2 and 3."""
    run = tmp_path_factory.mktemp("runs") / "run"
    launch(shards, run, "engine.zero_stage=3", "run.max_steps=3", "run.save_every=1", f"data.validation={shards}")
    return run


def trained(run: Path, step: int, *overrides: str) -> MaskFeat:
    """The model of a run's checkpoint."""
    model = build_model(small_recipe("unused", run, *overrides)).eval()
    model.load_state_dict(read(run / "checkpoints" / f"step-{step:08d}").weights())
    return model


def export(monkeypatch: pytest.MonkeyPatch, *arguments: Path | str) -> Path:
    """The folder that the script wrote, its second argument."""
    assert run_script(monkeypatch, "export.py", *arguments) == 0
    return Path(arguments[1])


def test_others_need_nothing_of_ours(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the card says, in a process with none of our packages: the features are the trained encoder's, bit for bit."""
    out = export(monkeypatch, run, tmp_path / "out", "--format", "timm", "torch")
    Image.effect_noise((48, 40), 80).convert("RGB").save(tmp_path / "image.png")
    snippet, _ = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    code = snippet.replace("FOLDER", str(out)).replace("image.jpg", str(tmp_path / "image.png"))
    code += (
        f"state = torch.load('{out / 'encoder.pt'}', weights_only=True)\n"
        "assert state.keys() == model.state_dict().keys()\n"
        "assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())\n"
        f"torch.save((image, feature, tokens), '{tmp_path / 'features'}')\n"
        "import sys\n"
        "assert not {'pipeline', 'model', 'shards'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True, cwd=tmp_path, timeout=240)
    image, feature, tokens = torch.load(tmp_path / "features")
    with torch.no_grad():
        want = trained(run, 3).encoder.forward_features(image)[:, 1:]
    assert torch.equal(tokens, want) and torch.equal(feature, want.mean(1))


def test_what_is_printed_is_python_whatever_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = export(monkeypatch, OLD / "pretrain", tmp_path / 'my "é" \'s', "--format", "timm", "torch", "maskfeat")
    lines = capsys.readouterr().out.splitlines()
    printed = [ast.parse(line.removeprefix(f"step 3 -> {out}: ")).body[0] for line in lines]
    found = [node.value for one in printed for node in ast.walk(one) if isinstance(node, ast.Constant)]
    assert [name for name in found if isinstance(name, str)] == [f"local-dir:{out}", f"{out}/encoder.pt", str(out)]


def test_an_older_step(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = load_file(export(monkeypatch, run, tmp_path / "older", "--step", "2") / "model.safetensors")
    newest = load_file(export(monkeypatch, run, tmp_path / "newest") / "model.safetensors")
    for step, exported in ((2, older), (3, newest)):
        want = trained(run, step).encoder.state_dict()
        assert exported.keys() == want.keys()
        assert all(torch.equal(exported[key], want[key]) for key in want)
    assert not torch.equal(older["blocks.0.mlp.fc1.weight"], newest["blocks.0.mlp.fc1.weight"])


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (0, "bf16"), (1, "bf16"), (2, "fp16"), (3, "bf16")])
def test_every_stage_exports_the_same_file(
    stage: int, precision: str, run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out, into a run by `model.init`, and out again: the first step's rate is 0, so the weights are the same."""
    out = export(monkeypatch, run, tmp_path / "out")
    settings = ["run.max_steps=1", "optim.warmup_lr=0", f"model.init={out}"]
    settings += [f"engine.zero_stage={stage}", f"engine.precision={precision}"]
    pretrain(shards, tmp_path / "run", *settings)
    again = export(monkeypatch, tmp_path / "run", tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_the_card_says_what_the_run_was(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = export(monkeypatch, run, tmp_path / "out", "--step", "2")
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "timm" and card.data.pipeline_tag == "image-feature-extraction"
    identity = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", card.text, re.DOTALL)[0])
    assert identity == read(run / "checkpoints" / "step-00000002").facts.identity
    table = dict(re.findall(r"^\| (\w.*?) \| (.*?) \|$", card.text, re.MULTILINE))
    assert table["steps"] == "2 of 16 images: 32 in all"
    assert table["training loss at step 2"] == f"{metrics(run)[1]['loss']:.4f}"
    assert not any(name.startswith("validation loss at") for name in table)  # there was none by then
    last = ModelCard.load(export(monkeypatch, run, tmp_path / "last") / "README.md").text
    baselines = json.loads((run / "baselines.json").read_text())
    assert f"| validation loss at step 3 | {metrics(run)[-1]['val_loss']:.4f} |" in last
    assert f"| validation loss of predicting the training set's mean target | {baselines['mean']:.4f} |" in last
    assert str(run) not in last  # cards are published, paths are not


def test_the_card_of_a_run_that_encoded_visible_patches(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visible = ("model.decoder=light", "model.decoder_width=32", "mask.kind=random", "mask.ratio=0.5", "mask.repeats=4")
    pretrain(shards, tmp_path / "run", *visible, "run.max_steps=2")
    card = ModelCard.load(export(monkeypatch, tmp_path / "run", tmp_path / "out") / "README.md").text
    assert "| steps | 2 of 16 views: 32 in all, 4 masks of each crop |" in card
    assert "it encoded the visible patches only" in card and "arxiv.org/abs/2303.05251" in card


def test_a_card_of_a_run_that_left_only_checkpoints(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(run / "checkpoints", tmp_path / "run" / "checkpoints")
    card = (export(monkeypatch, tmp_path / "run", tmp_path / "out") / "README.md").read_text()
    assert "| steps | 3 of 16 images: 48 in all |" in card and "| training loss" not in card


@pytest.mark.parametrize(
    ("settings", "taken"),
    [
        ({"frames": 16}, "A clip is 16 frames of 64x64 pixels,\ntaken evenly from 2.13 seconds of the video, "),
        ({"frames": 8, "sampling": "stride", "stride": 2}, "\n2 frames of the video apart, "),
        ({"frames": 8, "sampling": "stride", "stride": 1}, "\n1 frame of the video apart, "),
        ({"frames": 8, "sampling": "fps", "fps": 12.5}, "\ntaken 12.5 times a second, "),
        ({"frames": 8, "sampling": "segments"}, "\none of each of as many equal parts of the video, "),
    ],
)
def test_a_card_of_clips_says_which_frames_they_have(settings: dict[str, object], taken: str) -> None:
    data = Data.model_validate({"shards": "shards", "image_size": 64, **settings})
    said = clip_of(data, Statistics((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)))
    assert taken in said and said.endswith("mean (0.45, 0.45, 0.45) and deviation (0.225, 0.225, 0.225).")


def test_timms_preprocessing_is_that_of_the_validation(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal but for the resampling of two libraries."""
    model = timm.create_model(f"local-dir:{export(monkeypatch, run, tmp_path / 'out')}", pretrained=True)
    (tmp_path / "images").mkdir()
    ramp = Image.linear_gradient("L")
    Image.merge("RGB", [ramp, ramp.rotate(90), ramp.rotate(180)]).resize((120, 80)).save(tmp_path / "images" / "a.png")
    build(tmp_path / "images", tmp_path / "shards", workers=1)
    manifest = Manifest.load(tmp_path / "shards")
    data = small_recipe(tmp_path, run).data
    requests = validation_requests(manifest, data, samples=1, micro_batch=1, rank=0, world_size=1, seed=0)
    (batch,) = Loader(manifest, data, 1, torch.device("cpu")).batches(requests)
    ours = normalise(batch.inputs, torch.float32)[0]
    transform = create_transform(**resolve_model_data_config(model))
    theirs = transform(Image.open(tmp_path / "images" / "a.png").convert("RGB"))
    assert (ours - theirs).abs().mean() < 0.02 < 0.5 < ours.std()


def test_beit_stays_beit(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained at ZeRO 3, whose hooks see its attention use weights of a layer that is not called."""
    settings = ["model.name=beit_base_patch16_224", "model.position_init=random", "run.max_steps=2"]
    pretrain(shards, tmp_path / "run", *settings, "engine.zero_stage=3")
    out = export(monkeypatch, tmp_path / "run", tmp_path / "out")
    encoder = trained(tmp_path / "run", 2, *settings).encoder
    assert encoder.blocks[1].attn.relative_position_bias_table.any()  # 0 at the start
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got = timm.create_model(f"local-dir:{out}", pretrained=True).eval()(images)
        assert torch.equal(got, encoder.forward_features(images)[:, 1:].mean(1))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224"])
def test_onnx_gives_the_features_of_torch(name: str, tmp_path: Path) -> None:
    """In another folder than it was written to, with batches of sizes that it was not made with."""
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    torch.manual_seed(0)
    encoder = MaskFeat(build_encoder(name, (32, 48), embed_dim=32, depth=1, num_heads=1)).encoder.eval()
    for key, parameter in encoder.named_parameters():
        if "relative_position" in key:
            torch.nn.init.normal_(parameter)
    (tmp_path / "there").mkdir()
    assert export_onnx(encoder, tmp_path / "there" / "encoder.onnx") < 1e-4
    session = runtime.InferenceSession((tmp_path / "there").rename(tmp_path / "here") / "encoder.onnx")
    for batch in (2, 5):
        images = torch.randn(batch, 3, 32, 48)
        with torch.no_grad():
            want = encoder.forward_features(images)[:, 1:]
        pooled, patches = session.run(["pooled", "patches"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(patches), want, atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.from_numpy(pooled), want.mean(1), atol=1e-5, rtol=0)


def test_onnx_of_a_classifier_names_classes(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    torch.manual_seed(0)
    encoder = Classifier(
        build_encoder("vit_tiny_patch16_224", 32, 7, embed_dim=32, depth=1, num_heads=1)
    ).encoder.eval()
    torch.nn.init.normal_(encoder.head.weight)
    torch.nn.init.normal_(encoder.fc_norm.weight)
    export_onnx(encoder, tmp_path / "encoder.onnx")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        want, patches = encoder(images), encoder.forward_features(images)[:, 1:]
    pooled, logits = runtime.InferenceSession(tmp_path / "encoder.onnx").run(
        ["pooled", "logits"], {"images": images.numpy()}
    )
    torch.testing.assert_close(torch.from_numpy(logits), want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.from_numpy(pooled), patches.mean(1), atol=1e-5, rtol=0)


def resealed(checkpoint: Path) -> None:
    """Make a checkpoint that was changed one whose checksums are right, as an attacker could."""
    files = json.loads((checkpoint / "files.json").read_text())
    for name in files:
        content = (checkpoint / name).read_bytes()
        files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "files.json").write_text(json.dumps(files))


def edited(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


WRONG = {
    "code": lambda folder: torch.save({"x": Hostile(folder.parents[1] / "ran")}, folder / "part-00000.safetensors"),
    "truncated": lambda folder: (folder / "part-00001.safetensors").write_bytes(
        (folder / "part-00001.safetensors").read_bytes()[:-1]
    ),
    "architecture": lambda folder: edited(
        folder / "state.json", lambda s: s["recipe"]["model"]["options"].update(depth=3)
    ),
    "width": lambda folder: edited(
        folder / "state.json", lambda s: s["recipe"]["model"]["options"].update(embed_dim=64)
    ),
    "name": lambda folder: edited(folder / "state.json", lambda s: s["recipe"]["model"].update(name="resnet18")),
    "recipe": lambda folder: edited(folder / "state.json", lambda s: s["recipe"].update(model="vit")),
}


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_or_hostile_checkpoint_is_one_error(
    wrong: str,
    sealed: bool,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000003"
    shutil.copytree(run / "checkpoints" / "step-00000003", checkpoint)
    WRONG[wrong](checkpoint)
    if sealed:
        resealed(checkpoint)
    assert run_script(monkeypatch, "export.py", tmp_path / "run", tmp_path / "out", "--step", "3") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {checkpoint}") and error.count("\n") == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "run" / "ran").exists()


def test_what_cannot_be_exported(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for arguments, message in (
        ([run, tmp_path / "out", "--step", "7"], f"{run} has no checkpoint of step 7: it has 1, 2, 3"),
        ([tmp_path / "no run", tmp_path / "out", "--step", "7"], "has no checkpoint of step 7: it has none"),
        ([tmp_path / "no run", tmp_path / "out"], "has no checkpoint yet"),
        ([run, tmp_path / "file"], str(tmp_path / "file")),
    ):
        assert run_script(monkeypatch, "export.py", *arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
