"""Exports are read by Hugging Face's transformers, offline, and compute what they compute in timm."""

import re
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from PIL import Image
from resuming import OLD
from scripting import run_script
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

from model.classifier import Classifier
from model.encoders.timm_vit import build_encoder
from model.export import export_timm
from model.maskfeat import MaskFeat
from pipeline.pixels import IMAGENET


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.effect_noise((48, 40), 80).convert("RGB").save(path)
    return path


def in_timm(folder: Path, photo: Path) -> tuple[Any, Tensor]:
    """The exported network as timm reads it, and a photograph as timm prepares it."""
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    return network, transform(Image.open(photo))[None]


def exported(folder: Path, name: str, classes: int) -> Path:
    """A network with random weights everywhere, relative positions and biases included, in timm's layout."""
    options = {"embed_dim": 32, "depth": 2, "num_heads": 1, "drop_path_rate": 0.1}
    torch.manual_seed(0)
    size = 32 if classes else (32, 48)
    encoder = build_encoder(name, size, classes, **options)
    (Classifier if classes else MaskFeat)(encoder)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    statistics = {"mean": IMAGENET.mean, "std": IMAGENET.std}
    export_timm(
        encoder, folder, image_size=size, options=options, classes=["ant", "bee", "cow"][:classes], **statistics
    )
    return folder


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224", "vit_small_patch16_dinov3"])
def test_transformers_equals_timm_bit_for_bit(name: str, classes: int, tmp_path: Path, photo: Path) -> None:
    folder = exported(tmp_path / "out", name, classes)
    network, pixels = in_timm(folder, photo)
    prepared = AutoImageProcessor.from_pretrained(folder)(Image.open(photo))
    assert torch.equal(prepared.pixel_values, pixels) and pixels.shape == (1, 3, 32, 32 if classes else 48)
    with torch.no_grad():
        outputs = AutoModel.from_pretrained(folder).eval()(**prepared)
        tokens = network.forward_features(pixels)
        assert torch.equal(outputs.last_hidden_state, tokens) and tokens.std() > 0.1
        assert torch.equal(outputs.pooler_output, network.forward_head(tokens, pre_logits=True))
        if classes:
            logits = AutoModelForImageClassification.from_pretrained(folder).eval()(**prepared).logits
            assert torch.equal(logits, network(pixels)) and logits.shape == (1, classes)


def test_an_encoder_gets_a_fresh_classifier(tmp_path: Path, photo: Path) -> None:
    folder = exported(tmp_path / "out", "vit_tiny_patch16_224", 0)
    network, pixels = in_timm(folder, photo)
    with pytest.raises(ValueError, match="no classifier head"):
        AutoModelForImageClassification.from_pretrained(folder)
    classifier = AutoModelForImageClassification.from_pretrained(folder, num_labels=5).eval()
    with torch.no_grad():
        features = network(pixels)
        assert torch.equal(classifier.timm_model.head(features), classifier(pixels).logits)
    assert classifier.timm_model.head.out_features == 5


def run_card(folder: Path, photo: Path) -> dict[str, Any]:
    """Run the lines of Python in a model card that use transformers, and return the variables they leave."""
    (code,) = (
        snippet
        for snippet in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        if "transformers" in snippet
    )
    variables: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(folder)).replace("image.jpg", str(photo)), variables)
    return variables


def test_the_card_of_an_encoder(tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    assert run_script(monkeypatch, "export.py", OLD / "pretrain", out) == 0
    network, pixels = in_timm(out, photo)
    found = run_card(out, photo)
    with torch.no_grad():
        assert torch.equal(found["feature"], network(pixels))
        assert torch.equal(found["tokens"], network.forward_features(pixels)[:, 1:])
    (feature,) = pipeline("image-feature-extraction", model=str(out), pool=True)(str(photo))
    assert torch.equal(torch.tensor([feature]), found["feature"])


def test_the_card_of_a_classifier(tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes have the names of the run."""
    out = tmp_path / "out"
    assert run_script(monkeypatch, "export.py", OLD / "finetune", out) == 0
    network, pixels = in_timm(out, photo)
    with torch.no_grad():
        (shares,) = network(pixels).softmax(1).tolist()
    found = {entry["label"]: entry["score"] for entry in run_card(out, photo)["classes"]}
    assert found == pytest.approx(dict(zip(["one", "two"], shares, strict=True)), rel=1e-6)
