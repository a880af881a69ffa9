"""Weights of clips in and out: geometries told from shapes, tables and image weights made to fit, and plain readers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import checkpoints, clips
from safetensors.torch import load_file
from scripting import run_script
from torch import Tensor, nn
from torch.nn import functional as F

from model.classifier import Classifier
from model.convert import classifier, fill, load_mmpretrain, load_slowfast
from model.encoders.registry import build_network, encoder_of
from model.export_video import export_video, loader
from model.geometry import geometry
from model.maskfeat import MaskFeat
from model.onnx import export_onnx
from model.weights import (
    IMAGENET,
    KINETICS,
    MMPRETRAIN_VIDEO,
    SLOWFAST,
    TIMM,
    Layout,
    Normalisation,
    Weights,
    WeightsError,
    read,
)

KEYS = json.loads((Path(__file__).parents[1] / "golden" / "video_keys.json").read_text())
MVIT: dict[str, Any] = {"embed_dim": 16, "depth": 5, "stages": [1, 2, 4]}
PLAIN: dict[str, Any] = {"embed_dim": 64, "depth": 2, "num_heads": 1}


def named(network: nn.Module, layout: Layout, classifier: bool) -> Weights:
    """A network's weights, and those of a mask token and a prediction head, as another code would name them."""
    model = Classifier(network) if classifier else MaskFeat(network)
    tensors = {}
    for name, value in model.state_dict().items():
        behind = classifier and name.startswith("encoder.norm.")
        tensors[layout.key(name.replace("encoder.norm.", "encoder.fc_norm.") if behind else name)] = value
    return Weights(Path("file"), layout, tensors)


def random(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network


@pytest.mark.parametrize("layout", [SLOWFAST, MMPRETRAIN_VIDEO])
@pytest.mark.parametrize(
    ("name", "size", "frames", "classes", "options"),
    [
        ("mvit_v2_s", 224, 16, 0, {}),
        ("mvit_v2_l", 224, 16, 0, {}),
        ("mvit_v2_s", 224, 16, 400, {"q_stride_blocks": [1, 3, 14]}),
        ("mvit_v2_l", 312, 40, 400, {"q_stride_blocks": [2, 8, 44]}),
        ("mvit_v2", 96, 8, 0, {"embed_dim": 32, "depth": 6, "num_heads": 2, "stages": [1], "q_stride_blocks": [1, 4]}),
        ("mvit_v2", 64, 2, 0, {"embed_dim": 24, "depth": 4, "num_heads": 1, "stages": [1, 2]}),
        ("vit_base_patch16_224", 224, 16, 0, {}),
        ("vit_large_patch16_224", 224, 32, 400, {}),
    ],
)  # fmt: skip
def test_geometries_are_told_from_shapes(
    name: str, size: int, frames: int, classes: int, options: dict[str, Any], layout: Layout
) -> None:
    """Options too, but for query strides where they are those of pre-training."""
    if layout is MMPRETRAIN_VIDEO and not name.startswith("mvit"):
        pytest.skip("which has none")
    with torch.device("meta"):
        weights = named(build_network(name, size, frames, classes, **options), layout, classes > 0)
    assert geometry(weights) == (name, size, frames, options)
    with torch.device("meta"):
        again = build_network(name, size, frames, classes, **options)
    shapes = {key: value.shape for key, value in again.state_dict().items() if "norm." not in key or "blocks" in key}
    assert all(weights.tensors[weights.layout.key(f"encoder.{key}")].numel() == shapes[key].numel() for key in shapes)


def test_tables_of_no_such_network_are_an_error() -> None:
    with torch.device("meta"):
        weights = named(build_network("mvit_v2", 96, 8, **MVIT), SLOWFAST, False)
    weights.tensors["blocks.2.attn.rel_pos_h"] = torch.empty(9, 16)
    with pytest.raises(WeightsError, match="relative positions of 9 rows in block 2"):
        geometry(weights)


@pytest.mark.parametrize("kind", ["pretraining", "fine_tuned", "tubelet_pretraining", "tubelet_fine_tuned"])
def test_a_missing_misshaped_or_unknown_key_is_named(kind: str, tmp_path: Path) -> None:
    tensors = clips.weights({key: shape for key, shape in KEYS[kind].items() if not key.startswith("hogs.")})
    for key in list(tensors)[:: 1 + len(tensors) // 12]:
        for state in (
            {name: value for name, value in tensors.items() if name != key},
            tensors | {key: tensors[key].flatten()[:-1]},
            tensors | {f"{key}_more": tensors[key]},
        ):
            path = checkpoints.write(tmp_path / "file", "slowfast", state)
            with pytest.raises(WeightsError) as error:
                classifier(read(path)) if "fine_tuned" in kind else load_slowfast(path)
            assert key in str(error.value) and "\n" not in str(error.value)


def test_a_pretrained_mvit_starts_a_classifier_whose_tables_are_shorter(tmp_path: Path) -> None:
    """As SlowFast's loader does: linear, and the norm starts anew."""
    shapes = {key: shape for key, shape in KEYS["pretraining"].items() if not key.startswith("hogs.")}
    tensors = clips.weights(shapes)
    network = build_network("mvit_v2", 64, 4, 3, **MVIT)
    model, start = Classifier(network), Classifier(network).state_dict()
    notes = fill(model, read(checkpoints.write(tmp_path / "file", "slowfast", tensors)), KINETICS)
    state = model.state_dict()
    for ours in (name for name in state if ".rel_pos_" in name):
        theirs = tensors[ours.removeprefix("encoder.")]
        want = F.interpolate(theirs.T[None], size=len(state[ours]), mode="linear")[0].T
        torch.testing.assert_close(state[ours], want, atol=0, rtol=0)
    assert (
        state["encoder.blocks.0.attn.rel_pos_t"].shape == (3, 16) and tensors["blocks.0.attn.rel_pos_t"].shape[0] == 7
    )
    assert torch.equal(state["encoder.pos_encoding.class_token"], tensors["cls_token"].flatten())
    assert all(torch.equal(state[name], start[name]) for name in ("encoder.norm.weight", "encoder.head.1.weight"))
    assert any("resampled" in note for note in notes) and any("pred_head" in note for note in notes)


def test_a_mvit_of_another_normalisation_is_an_error() -> None:
    """Its embedding pads: what is beyond the border would no longer be zero."""
    model = MaskFeat(build_network("mvit_v2", 64, 8, **MVIT))
    weights = Weights(Path("file"), TIMM, dict(model.encoder.state_dict()), KINETICS)
    with pytest.raises(WeightsError, match=r"set model\.mean=\[0\.45, 0\.45, 0\.45\] and model\.std=\[0\.225"):
        fill(model, weights, IMAGENET)
    fill(model, weights, KINETICS)


@pytest.mark.parametrize("size", [64, 96])
@pytest.mark.parametrize("classes", [0, 3])
def test_weights_of_images_start_a_tubelet_vit(classes: int, size: int) -> None:
    """A clip that stands still is embedded as its image, also where images were normalised otherwise."""
    torch.manual_seed(0)
    image_network = random(build_network("vit_tiny_patch16_224", 64, None, **PLAIN))
    model_of: Any = Classifier if classes else MaskFeat
    model = model_of(build_network("vit_tiny_patch16_224", size, 8, classes, **PLAIN))
    temporal = model.encoder.pos_embed_temporal.clone()
    weights = Weights(Path("file"), TIMM, dict(image_network.state_dict()), IMAGENET)
    notes = fill(model, weights, KINETICS)
    pixels = torch.rand(2, 3, 64, 64)

    def normalised(values: Normalisation) -> Tensor:
        mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (values.mean, values.std))
        return (pixels - mean) / std

    still = normalised(KINETICS)[:, :, None].expand(-1, -1, 8, -1, -1)
    with torch.no_grad():
        image, clip = encoder_of(image_network).embed(normalised(IMAGENET)), model.view.network.patch_embed(still)
    torch.testing.assert_close(clip, image.repeat(1, 4, 1), atol=1e-5, rtol=1e-4)
    given = image_network.state_dict()
    encoder = model.encoder
    assert torch.equal(encoder.pos_embed_class, given["pos_embed"][:, :1])
    assert torch.equal(encoder.pos_embed_temporal, temporal)
    assert torch.equal(encoder.blocks[1].mlp.fc1.weight, given["blocks.1.mlp.fc1.weight"])
    if size == 64:
        assert torch.equal(encoder.pos_embed_spatial, given["pos_embed"][:, 1:])
    assert any("made of those of images" in note for note in notes)
    assert any("resampled" in note for note in notes) == (size != 64)


def test_tubelet_weights_of_other_clips_are_resampled() -> None:
    weights = dict(random(build_network("vit_tiny_patch16_224", 64, 16, **PLAIN)).state_dict())
    model = MaskFeat(build_network("vit_tiny_patch16_224", 64, 8, **PLAIN))
    fill(model, Weights(Path("file"), TIMM, weights))
    want = F.interpolate(weights["pos_embed_temporal"].transpose(1, 2), size=4, mode="linear").transpose(1, 2)
    torch.testing.assert_close(model.encoder.pos_embed_temporal.detach(), want)
    assert torch.equal(model.encoder.pos_embed_spatial, weights["pos_embed_spatial"])


def test_mmpretrains_video_project(tmp_path: Path) -> None:
    """The same numbers under its names; of a fine-tuned one, whose head takes the class token, only the encoder."""
    shapes = {key: shape for key, shape in KEYS["pretraining"].items() if not key.startswith("hogs.")}
    ours = load_slowfast(checkpoints.write(tmp_path / "slowfast", "slowfast", clips.weights(shapes))).eval()
    theirs = {MMPRETRAIN_VIDEO.key(name): value for name, value in ours.state_dict().items()}
    theirs["backbone.cls_token"] = theirs["backbone.cls_token"].view(1, 1, -1)
    assert {"backbone.norm2.weight", "backbone.blocks.1.attn.pool_q.weight", "neck.fc.bias"} < theirs.keys()
    model = load_mmpretrain(checkpoints.write(tmp_path / "file", "mmpretrain", theirs)).eval()
    inputs, mask = torch.randn(1, 3, 8, 96, 96), clips.masks()[0, :1]
    with torch.no_grad():
        assert torch.equal(model(inputs, mask), ours(inputs, mask))

    tuned = {
        key.replace("backbone.norm2.", "backbone.norm3."): value
        for key, value in theirs.items()
        if not key.startswith("neck.")
    }
    del tuned["backbone.mask_token"]
    tuned |= {"cls_head.fc_cls.weight": torch.ones(5, 128), "cls_head.fc_cls.bias": torch.ones(5)}
    file = checkpoints.write(tmp_path / "tuned", "mmpretrain", tuned)
    with pytest.raises(WeightsError, match="uses the class token"):
        classifier(read(file))
    encoder = load_mmpretrain(file).state_dict()
    assert torch.equal(encoder["encoder.conv_proj.weight"], ours.state_dict()["encoder.conv_proj.weight"])


@pytest.mark.parametrize(("name", "options"), [("mvit_v2", MVIT), ("vit_tiny_patch16_224", PLAIN)])
@pytest.mark.parametrize(("frames", "classes"), [(8, 0), (8, 3), (1, 0)])
def test_plain_readers_compute_the_same(
    name: str, options: dict[str, Any], frames: int, classes: int, tmp_path: Path
) -> None:
    """In a process that imports nothing of this project, by the lines that cards have."""
    network = build_network(name, (64, 96), frames, classes, **options)
    (Classifier if classes else MaskFeat)(network)
    random(network).eval()
    labels = ["a", "b", "c"][:classes]
    export_video(network, tmp_path, name=name, options=options, normalisation=KINETICS, classes=labels)
    code = loader(network, name).replace("FOLDER", str(tmp_path))
    code += f"import sys\nassert 'model' not in sys.modules\ntorch.save((clips, outputs), '{tmp_path / 'outputs'}')\n"
    subprocess.run([sys.executable, "-I", "-c", code], check=True, cwd=tmp_path, timeout=240)
    inputs, outputs = torch.load(tmp_path / "outputs")
    view = encoder_of(network)
    with torch.no_grad():
        want = view.head(view.pooled((inputs - 0.45) / 0.225))
    assert outputs.shape == (1, classes or view.width)
    torch.testing.assert_close(outputs, want, atol=1e-6, rtol=1e-5)  # that process may have other threads
    stated = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    assert stated["input_size"] == [3, frames, 64, 96] and stated.get("label_names", []) == labels

    again = (Classifier if classes else MaskFeat)(build_network(name, (64, 96), frames, classes, **options))
    fill(again, read(tmp_path), KINETICS)  # as model.init does
    same = [key for key in network.state_dict() if not key.startswith(view.classifier_parts)]
    assert same and all(torch.equal(again.encoder.state_dict()[key], network.state_dict()[key]) for key in same)


def test_a_classifiers_export_starts_a_maskfeat_but_for_its_norm(tmp_path: Path) -> None:
    network = random(build_network("mvit_v2", 64, 8, 3, **MVIT))
    export_video(network, tmp_path, name="mvit_v2", options=MVIT, normalisation=KINETICS)
    model = MaskFeat(build_network("mvit_v2", 64, 8, **MVIT))
    fill(model, read(tmp_path), KINETICS)
    assert torch.equal(model.encoder.norm.weight, torch.ones(128))
    assert torch.equal(model.encoder.conv_proj.weight, network.conv_proj.weight)


@pytest.mark.parametrize("kind", ["pretraining", "tubelet_fine_tuned"])
def test_the_script_prints_lines_that_read_what_it_wrote(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = clips.weights({key: shape for key, shape in KEYS[kind].items() if not key.startswith("hogs.")})
    file = checkpoints.write(tmp_path / "file", "slowfast", tensors)
    assert run_script(monkeypatch, "convert.py", file, tmp_path / "out") == 0
    _, code = capsys.readouterr().out.split(":\n", 1)
    code += f"torch.save((clips, outputs), '{tmp_path / 'outputs'}')\n"
    subprocess.run([sys.executable, "-I", "-c", code], check=True, cwd=tmp_path, timeout=240)
    inputs, outputs = torch.load(tmp_path / "outputs")
    network = classifier(read(file)) if "fine_tuned" in kind else load_slowfast(file).encoder
    view = encoder_of(network.eval())
    with torch.no_grad():
        want = view.head(view.pooled((inputs - 0.45) / 0.225))
        torch.testing.assert_close(outputs, want, atol=1e-6, rtol=1e-5)  # that process may have other threads
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == network.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "options"), [("mvit_v2", MVIT | {"depth": 3, "stages": [1]}), ("vit_tiny_patch16_224", PLAIN)]
)
@pytest.mark.parametrize("classes", [0, 3])
def test_onnx(name: str, options: dict[str, Any], classes: int, tmp_path: Path) -> None:
    """Any batch, within 1e-4 of torch, which the export compares itself."""
    pytest.importorskip("onnxruntime")
    network = random(build_network(name, (32, 48), 4, classes, **options)).eval()
    assert export_onnx(network, tmp_path / "encoder.onnx") < 1e-4
