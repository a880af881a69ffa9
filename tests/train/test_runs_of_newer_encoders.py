"""Runs of DINOv2's and DINOv3's transformers: started from timm's weights, resumed, exported and fine-tuned."""

import json
from pathlib import Path

import pytest
import timm
import torch
from labelled import labelled_shards
from launching import finetune, last_checkpoint, metrics, pretrain, small_recipe
from safetensors.torch import load_file
from scripting import run_script
from timm.models import save_for_hf

from pipeline.build import build_examples, build_model, compile_forward

OPTIONS = {"embed_dim": 32, "depth": 2, "num_heads": 1}
RUNS = {
    "vit_small_patch14_reg4_dinov2": ("data.image_size=28", "engine.precision=bf16"),
    "vit_small_patch16_dinov3": ("data.image_size=32", "engine.zero_stage=2"),
}


def settings(name: str) -> list[str]:
    return [f"model.name={name}", "model.position_init=random", *RUNS[name]]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_from_timms_weights_resumes_bit_for_bit_and_is_exported_and_fine_tuned(
    name: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    size = small_recipe(shards, tmp_path, *settings(name)).data.image_size
    network = timm.create_model(name, img_size=size, num_classes=0, **OPTIONS)
    save_for_hf(network, str(tmp_path / "timm"), safe_serialization=True)
    started = [*settings(name), f"model.init={tmp_path / 'timm'}"]
    pretrain(shards, tmp_path / "whole", *started, "run.max_steps=4")
    pretrain(shards, tmp_path / "parts", *started, "run.max_steps=2")
    pretrain(shards, tmp_path / "parts", *started, "run.max_steps=4")
    whole, parts = metrics(tmp_path / "whole"), metrics(tmp_path / "parts")
    for key in ("loss", "grad_norm", "lr"):
        assert [line[key] for line in parts] == [line[key] for line in whole], key

    assert run_script(monkeypatch, "export.py", tmp_path / "parts", tmp_path / "weights") == 0
    exported = load_file(tmp_path / "weights/model.safetensors")
    weights = last_checkpoint(tmp_path / "whole").weights()
    assert all(torch.equal(tensor, weights[f"encoder.{key}"]) for key, tensor in exported.items())
    assert exported.keys() == network.state_dict().keys()

    classes = ["optim.batch_size=8", f"model.options={json.dumps(OPTIONS)}", "run.max_steps=1"]
    labelled = labelled_shards(tmp_path, {"train": {"blue": 8, "red": 8}})["train"]
    finetune(labelled, labelled, tmp_path / "classes", *started[:-1], f"model.init={tmp_path / 'weights'}", *classes)
    assert len(metrics(tmp_path / "classes")) == 1


@pytest.mark.parametrize("decoder", ["null", "light"])
@pytest.mark.parametrize("name", RUNS)
def test_the_compiled_model_is_one_graph_and_predicts_the_same(name: str, decoder: str, tmp_path: Path) -> None:
    visible = [] if decoder == "null" else ["mask.kind=random", "mask.ratio=0.5", "model.decoder_width=32"]
    recipe = small_recipe("unread", tmp_path, *settings(name), f"model.decoder={decoder}", *visible)
    model = build_model(recipe)
    examples = build_examples(recipe, model, torch.float32, torch.device("cpu"))
    crops = torch.randint(0, 256, (2, 3, recipe.data.image_size, recipe.data.image_size), dtype=torch.uint8)
    example = examples.example(crops, torch.arange(2))
    expected = model(example.inputs, example.mask)
    compile_forward(model)
    torch.testing.assert_close(model(example.inputs, example.mask), expected, atol=1e-5, rtol=1e-4)
