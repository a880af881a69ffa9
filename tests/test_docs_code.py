"""The Python of the how-to guides runs as it stands. test_own_target.py and test_own_encoder.py have two more."""

import doctest
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import CHECKOUT
from making_images import picture

from model.encoders.timm_vit import build_encoder
from model.export import export_timm
from shards import build as builder
from shards.manifest import Manifest


def run(page: str, number: int) -> dict[str, Any]:
    """Run one of a guide's blocks of Python, counted from 0, and return its names."""
    text = (CHECKOUT / "docs" / "how-to" / page).read_text()
    names: dict[str, Any] = {}
    exec(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[number], names)
    return names


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export of a tiny encoder, in the folder `weights`."""
    options = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    encoder = build_encoder("vit_tiny_patch16_224", 64, 0, **options)
    statistics = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    export_timm(encoder, tmp_path / "weights", image_size=64, options=options, **statistics)
    monkeypatch.chdir(tmp_path)


def test_the_segmenter_learns_from_a_batch(weights: None) -> None:
    names = run("dense.md", 0)
    assert names["segmenter"](names["images"]).shape == (2, 21, 160, 224)
    optimizer = torch.optim.AdamW(names["segmenter"].parameters(), 1e-2)
    optimizer.step()
    again = torch.nn.functional.cross_entropy(names["segmenter"](names["images"]), names["labels"])
    assert again < names["loss"]


def test_the_detector_trains_its_encoder(weights: None) -> None:
    names = run("dense.md", 1)
    assert names["losses"].keys() >= {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness"}
    pyramid = names["detector"].backbone
    assert all(parameter.grad is not None for parameter in pyramid.encoder.parameters())
    sides = [tuple(features.shape[-2:]) for features in pyramid(torch.zeros(1, 3, 64, 96)).values()]
    assert sides == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_a_source_of_ones_own_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "coco" / "images").mkdir(parents=True)
    for seed, name in enumerate(("b.png", "a.png", "empty.png")):
        picture(seed).save(tmp_path / "coco" / "images" / name)
    content = {
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "images": [{"id": index, "file_name": name} for index, name in enumerate(("b.png", "a.png", "empty.png"))],
        "annotations": [
            {"image_id": 0, "category_id": 3, "area": 4.0},
            {"image_id": 0, "category_id": 7, "area": 9.0},
            {"image_id": 1, "category_id": 3, "area": 1.0},
        ],
    }
    (tmp_path / "coco" / "instances.json").write_text(json.dumps(content))
    list_coco = run("own-source.md", 0)["list_coco"]
    monkeypatch.setattr(builder, "list_source", lambda source, group_by: list_coco(source))
    builder.build(tmp_path / "coco" / "instances.json", tmp_path / "out", workers=1)
    manifest = Manifest.load(tmp_path / "out")
    found = {manifest.path(index): int(np.asarray(manifest.label)[index]) for index in range(2)}
    assert found == {"a.png": 0, "b.png": 1}  # cat, dog


def test_the_trace_of_the_architecture_is_true() -> None:
    text = (CHECKOUT / "docs" / "explanation" / "architecture.md").read_text()
    lines = "\n".join(re.findall(r"^```pycon\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    trace = doctest.DocTestParser().get_doctest(lines, {}, "architecture.md", None, None)
    assert doctest.DocTestRunner().run(trace).failed == 0 < len(trace.examples)
