"""`model.init`: the weights that a run accepts, and those that it refuses."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from golden import checkpoints
from launching import losses, pretrain, small_recipe
from making import hog_examples
from scripting import Hostile, run_script
from timm.layers import resample_abs_pos_embed
from timm.models import save_for_hf
from torch import nn

from model.convert import classifier, fill, load_mmpretrain, load_slowfast
from model.maskfeat import MaskFeat
from model.weights import WeightsError, read
from pipeline.build import build_model, init_identity, start_from_init
from pipeline.checkpoints.checkpoint import CheckpointError
from pipeline.config import Recipe, load_recipe
from pipeline.data.exact import ExactData
from pipeline.data.training_data import Part
from pipeline.pixels import normalise
from pipeline.settings import ConfigError
from pipeline.targets.target import squared_errors

LOAD = {"slowfast": load_slowfast, "mmpretrain": load_mmpretrain}
SMALL = {"embed_dim": 128, "depth": 2, "num_heads": 2}
RELATIVE = ".relative_position_bias_table"


def recipe(init: Path, *overrides: str) -> Recipe:
    options = f"model.options={json.dumps(SMALL)}"
    return load_recipe(
        "demo", ["data.shards=/nowhere", "data.image_size=64", options, *overrides, f"model.init={init}"]
    )


def started(init: Path, *overrides: str) -> tuple[MaskFeat, MaskFeat, str | None]:
    """Return the initial model, the one without `model.init`, and the notes for the operator."""
    settings = recipe(init, *overrides)
    torch.manual_seed(0)
    untrained = build_model(settings)
    torch.manual_seed(0)
    model = build_model(settings)
    return model, untrained, start_from_init(model, settings)


@pytest.mark.parametrize("code", LOAD)
def test_a_run_starts_from_a_pretraining_checkpoint(code: str, tmp_path: Path) -> None:
    path = checkpoints.write(tmp_path / "file", code, checkpoints.tensors(code, "pretraining"))
    model, _, told = started(path)
    want = LOAD[code](path).state_dict()
    assert all(torch.equal(value, want[name]) for name, value in model.state_dict().items())
    buffers = ", ".join(key for key in checkpoints.KEYS[code]["pretraining"] if key.startswith(checkpoints.BUFFERS))
    assert told == f"of {path}: {buffers} passed over"


@pytest.mark.parametrize("code", LOAD)
def test_a_run_starts_from_a_fine_tuned_checkpoint(code: str, tmp_path: Path) -> None:
    path = checkpoints.write(tmp_path / "file", code, checkpoints.tensors(code, "fine_tuned"))
    model, untrained, _ = started(path)
    want = classifier(read(path)).state_dict()
    for name, value in model.state_dict().items():
        fresh = name.startswith(("mask_token", "head.", "encoder.norm."))
        assert torch.equal(value, untrained.state_dict()[name] if fresh else want[name.removeprefix("encoder.")]), name


def timm_encoder(name: str = "vit_base_patch16_224", **options: Any) -> timm.models.VisionTransformer:
    torch.manual_seed(1)
    return timm.create_model(name, **{"img_size": 64, **SMALL, **options})


def write_timm(model: nn.Module, path: Path) -> Path:
    """Write weights in the format of the name."""
    state = model.state_dict()
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    elif path.suffix == ".mae":  # with what an MAE's pre-training has besides an encoder
        decoder = {"mask_token": torch.ones(1, 1, 8), "decoder_blocks.0.norm1.weight": torch.ones(8)}
        torch.save({"model": state | decoder, "args": Namespace(model="mae_vit_base_patch16")}, path)
    elif path.suffix:
        torch.save(state, path)
    else:
        save_for_hf(model, str(path), safe_serialization=True)
    return path


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights.mae", "folder"])
@pytest.mark.parametrize("classes", [0, 10])
def test_a_run_starts_from_an_encoder_of_timms(name: str, classes: int, tmp_path: Path) -> None:
    """Test timm's weights of MAE, and classifiers with a norm before the pooling."""
    encoder = timm_encoder("vit_base_patch16_224.mae", num_classes=classes)
    model, untrained, told = started(write_timm(encoder, tmp_path / name), "model.name=vit_base_patch16_224.mae")
    for key, value in model.encoder.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[key]), key
    assert torch.equal(model.mask_token, untrained.mask_token) and torch.equal(model.head.weight, untrained.head.weight)
    assert told
    passed_over = {"head.weight", "head.bias"} if classes else set()
    passed_over |= {"mask_token", "decoder_blocks.0.norm1.weight"} if name == "weights.mae" else set()
    assert "mask_token, head.weight, head.bias start anew" in told
    assert (" passed over" in told) == bool(passed_over)
    assert len(passed_over) > 3 or all(key in told for key in passed_over)  # of more, three are named
    assert ("assumed to be trained on inputs normalised as here" in told) == (name != "folder")


def beit_pretraining(encoder: nn.Module, path: Path) -> Path:
    """Return a checkpoint as BEiT's pre-training saves it: with its heads, and computed position indices."""
    head = {
        "lm_head.weight": torch.ones(5, 128),
        "mask_token": torch.ones(1, 1, 128),
        "cls_pt_norm.bias": torch.ones(8),
    }
    index = {
        key.replace("bias_table", "index"): torch.ones(17, 17).long() for key in encoder.state_dict() if RELATIVE in key
    }
    torch.save({"model": encoder.state_dict() | head | index}, path)
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("beit_base_patch16_224", {}),
        ("beitv2_base_patch16_224", {}),
        ("beitv2_base_patch16_224", {"use_shared_rel_pos_bias": True, "use_rel_pos_bias": False, "use_fc_norm": False}),
        ("vit_base_patch16_224", {}),
    ],
)
def test_features_are_timms_own(name: str, options: dict[str, bool], tmp_path: Path) -> None:
    """Compare on the same pixels, normalised as each model requires: 0.5 for BEiT v1 and timm's own ViT."""
    encoder = timm_encoder(name, **options).eval()
    for key, parameter in encoder.named_parameters():  # none of them 0, as some start
        if key.endswith(("bias", "gamma_1", "gamma_2", RELATIVE)):
            nn.init.normal_(parameter, std=0.5)
    write = beit_pretraining if options else write_timm
    options.pop("use_fc_norm", None)
    overrides = [f"model.name={name}", "model.position_init=random"]
    overrides.append(f"model.options={json.dumps({**SMALL, **options})}")
    model, untrained, told = started(write(encoder, tmp_path / "weights"), *overrides)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean, std = (torch.tensor(encoder.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    if isinstance(encoder.norm, nn.Identity):  # its norm is behind the pooling, so this one starts anew
        assert torch.equal(model.encoder.norm.weight, untrained.encoder.norm.weight)
        assert told and "mask_token, encoder.norm.weight, encoder.norm.bias and 2 more start anew" in told
        model.encoder.norm = nn.Identity()
    with torch.no_grad():
        want = encoder.forward_features((pixels / 255 - mean) / std)
        got = model.encoder.forward_features(normalise(pixels, torch.float32))
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)
    moved = encoder.pretrained_cfg["mean"][0] == 0.5
    assert told and ("patch_embed rewritten from images of mean (0.5, 0.5, 0.5)" in told) == moved
    assert ("lm_head.weight" in told) == (write is beit_pretraining)


def test_an_embedding_without_bias_cannot_take_another_normalisation(tmp_path: Path) -> None:
    encoder = timm_encoder("vit_base_patch16_clip_224", num_classes=0)
    settings = recipe(write_timm(encoder, tmp_path / "weights"), "model.name=vit_base_patch16_clip_224")
    with pytest.raises(ConfigError, match=r"without patch_embed\.proj\.bias"):
        start_from_init(build_model(settings), settings)


def test_weights_of_beit_do_not_fit_a_plain_transformer(tmp_path: Path) -> None:
    """A plain transformer has no relative positions; they are not dropped silently."""
    settings = recipe(write_timm(timm_encoder("beit_base_patch16_224"), tmp_path / "weights.pth"))
    with pytest.raises(ConfigError, match=r"missing pos_embed, .*unknown blocks\.0\.gamma_1"):
        start_from_init(build_model(settings), settings)


def test_relative_positions_of_another_grid_are_resampled(tmp_path: Path) -> None:
    encoder = timm_encoder("beit_base_patch16_224", img_size=96)
    for block in encoder.blocks:
        nn.init.normal_(block.attn.relative_position_bias_table)
    path = write_timm(encoder, tmp_path / "weights.pth")
    model, _, told = started(path, "model.name=beit_base_patch16_224", "model.position_init=random")
    encoder.set_input_size(img_size=64)
    for key, value in model.encoder.state_dict().items():
        if RELATIVE in key:
            assert value.shape == (7 * 7 + 3, 2) and torch.equal(value, encoder.state_dict()[key])
            assert told and f"blocks.1.attn{RELATIVE} resampled to 4x4 patches" in told


def test_a_norm_behind_the_pooling_is_not_taken(tmp_path: Path) -> None:
    encoder = timm_encoder(global_pool="avg", num_classes=10)
    nn.init.constant_(encoder.fc_norm.weight, 3)
    model, _, _ = started(write_timm(encoder, tmp_path / "weights.pth"))
    assert torch.equal(model.encoder.norm.weight, torch.ones(128))
    assert torch.equal(model.encoder.cls_token, encoder.cls_token)


@pytest.mark.parametrize(
    ("name", "options"),
    [("beit3_base_patch16_224", {}), ("deit3_small_patch16_224", {}), ("vit_base_patch16_224", {"reg_tokens": 4})],
)
def test_position_embeddings_of_another_grid_are_resampled(name: str, options: dict[str, int], tmp_path: Path) -> None:
    """BEiT-3's sub-norms, DeiT-3's layer scales and class token without a position, and register tokens."""
    encoder = timm_encoder(name, img_size=96, **options)
    overrides = [f"model.name={name}", f"model.options={json.dumps(SMALL | options)}"]
    model, _, _ = started(write_timm(encoder, tmp_path / "weights.pth"), *overrides)
    prefix = 0 if encoder.no_embed_class else encoder.num_prefix_tokens
    want = resample_abs_pos_embed(encoder.pos_embed, [4, 4], num_prefix_tokens=prefix)
    assert encoder.pos_embed.shape[1] == 36 + prefix
    torch.testing.assert_close(model.encoder.pos_embed, want, atol=0, rtol=0)
    for key in encoder.state_dict().keys() - {"pos_embed", "head.weight", "head.bias", "norm.weight", "norm.bias"}:
        if not key.startswith("fc_norm."):
            assert torch.equal(model.encoder.state_dict()[key], encoder.state_dict()[key]), key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 3}, "unknown blocks.2.norm1.weight, blocks.2.norm1.bias, blocks.2.attn.qkv.weight and 9 more"),
        ({"depth": 1}, "missing blocks.1.norm1.weight, "),
        ({"embed_dim": 64}, "cls_token is (1, 1, 64) instead of (1, 1, 128)"),
        ({"patch_size": 8}, "patch_embed.proj.weight is (128, 3, 8, 8) instead of (128, 3, 16, 16)"),
        ({"qkv_bias": False}, "missing blocks.0.attn.qkv.bias, blocks.1.attn.qkv.bias "),
        ({"class_token": False}, "missing cls_token"),
    ],
)
def test_an_encoder_that_does_not_fit_the_recipe(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    if options.get("class_token") is False:
        options = options | {"global_pool": "avg"}
    path = write_timm(timm_encoder(**options), tmp_path / "weights.pth")
    settings = recipe(path)
    with pytest.raises(ConfigError) as error:
        start_from_init(build_model(settings), settings)
    assert f"model.init: {path}" in str(error.value) and message in str(error.value)
    assert "(model.name and model.options must be those of the weights)" in str(error.value)


def test_a_hostile_or_damaged_file_is_one_error(tmp_path: Path) -> None:
    whole = write_timm(timm_encoder(), tmp_path / "whole.pth")
    (tmp_path / "cut").write_bytes(whole.read_bytes()[:-1])
    torch.save({"model": Hostile(tmp_path / "ran")}, tmp_path / "hostile")
    for name, message in (
        ("cut", "is damaged"),
        ("hostile", "contains more than tensors"),
        ("none", "there is no weights"),
    ):
        settings = recipe(tmp_path / name)
        with pytest.raises(ConfigError, match=message) as error:
            start_from_init(build_model(settings), settings)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_run_starts_from_what_the_script_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoints.write(tmp_path / "file", "slowfast", checkpoints.tensors("slowfast", "pretraining"))
    assert run_script(monkeypatch, "convert.py", path, tmp_path / "out") == 0
    model, _, _ = started(tmp_path / "out")
    want = load_slowfast(path).encoder.state_dict()
    assert all(torch.equal(value, want[name]) for name, value in model.encoder.state_dict().items())


def test_nothing_changes_when_the_weights_do_not_fit(tmp_path: Path) -> None:
    model = build_model(recipe(tmp_path))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError):
        fill(model, read(write_timm(timm_encoder(depth=3), tmp_path / "weights.pth")))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_run_is_bound_to_the_weights_and_not_to_their_path(tmp_path: Path) -> None:
    first, moved = (write_timm(timm_encoder(), tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    folder = write_timm(timm_encoder(), tmp_path / "folder")
    assert init_identity(recipe(first)) == init_identity(recipe(moved))
    assert init_identity(recipe(folder)) == init_identity(recipe(folder / "model.safetensors"))
    other = write_timm(timm_encoder(num_classes=3), tmp_path / "other.safetensors")
    assert init_identity(recipe(first)) != init_identity(recipe(other))
    assert init_identity(load_recipe("demo", ["data.shards=/nowhere"])) is None
    with pytest.raises(ConfigError, match=r"model\.init: there is no weights file"):
        init_identity(recipe(tmp_path / "none"))


def test_a_run_from_others_weights_resumes_with_them_elsewhere(shards: Path, tmp_path: Path) -> None:
    """The first loss is that of the weights; they may move, but not change."""
    options = "model.options={embed_dim: 128, depth: 2, num_heads: 2}"
    tensors = checkpoints.tensors("slowfast", "pretraining")
    path = checkpoints.write(tmp_path / "file", "slowfast", tensors)
    settings = ["data.image_size=64", options]
    pretrain(shards, tmp_path / "run", *settings, "run.max_steps=2", f"model.init={path}")
    pretrain(shards, tmp_path / "untrained", *settings, "run.max_steps=1")
    data = ExactData(small_recipe(shards, tmp_path, *settings).data, Part(16, 16, 0, torch.device("cpu")))
    (batch,) = data.batches(0, 1)
    example = hog_examples(4, 4).example(batch.inputs, batch.keys)
    with torch.no_grad():
        predictions = load_slowfast(path)(example.inputs, example.mask)
    loss = squared_errors(predictions, example.targets, 16).mean().item()
    assert losses(tmp_path / "run")[1] == pytest.approx(loss, rel=1e-5)
    assert losses(tmp_path / "untrained")[1] != pytest.approx(loss, rel=0.1)

    moved = path.rename(tmp_path / "moved")
    pretrain(shards, tmp_path / "run", *settings, "run.max_steps=3", f"model.init={moved}")
    assert list(losses(tmp_path / "run")) == [1, 2, 3]
    checkpoints.write(moved, "slowfast", tensors | {"cls_token": torch.ones(1, 1, 128)})
    with pytest.raises(CheckpointError, match=r"model\.init was [0-9a-f]{64}, now [0-9a-f]{64}"):
        pretrain(shards, tmp_path / "run", *settings, "run.max_steps=4", f"model.init={moved}")
