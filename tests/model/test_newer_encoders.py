"""DINOv2's and DINOv3's transformers: layer scale, register tokens and rotary positions, beside timm's own code."""

import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import save_for_hf
from torch import nn

from model.classifier import Classifier
from model.convert import fill
from model.encoders.encoder import Encoder
from model.encoders.registry import build_network, encoder_of
from model.export import export_timm
from model.maskfeat import MaskFeat
from model.onnx import export_onnx
from model.weights import read
from pipeline.targets.hog.arithmetic import target_width

SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 2}
STATISTICS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

# name, image size (four patches a side), tokens before the patches
NETWORKS = [
    ("vit_small_patch14_dinov2", 56, 1),
    ("vit_small_patch14_reg4_dinov2", 56, 5),
    ("vit_small_patch16_dinov3", 64, 5),
    ("vit_small_patch16_dinov3_qkvb", 64, 5),
    ("eva02_tiny_patch14_224", 56, 1),
    ("vit_small_patch16_rope_mixed_224", 64, 1),
]
each_network = pytest.mark.parametrize(("name", "size", "prefix"), NETWORKS)


def lively(network: nn.Module) -> nn.Module:
    """Draw weights with which every part matters: fresh layer scales of 1e-5 would hide all blocks."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


def network(name: str, size: int, classes: int = 0) -> tuple[Encoder, torch.Tensor]:
    """Build a small network, and two images for it."""
    built = lively(build_network(name, size, None, classes, **SMALL))
    return encoder_of(built), torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@each_network
def test_tokens_are_timms_own(name: str, size: int, prefix: int) -> None:
    view, images = network(name, size)
    with torch.no_grad():
        want = view.network.forward_features(images)
        got = view.encode(view.embed(images))
        assert view.prefix == prefix and view.token_layout.shape == (4, 4)
        assert torch.equal(got, want[:, prefix:])
        assert torch.equal(view.pooled(images), want[:, prefix:].mean(1))
        means, classes = (view.pooled_blocks(images, [0, 1], pool)[1] for pool in ("mean", "class"))
    torch.testing.assert_close(means, want[:, prefix:].mean(1))
    torch.testing.assert_close(classes, want[:, 0])


@each_network
def test_visible_patches_keep_the_positions_of_their_places(name: str, size: int, prefix: int) -> None:
    """All patches in any order are encoded as ever; fewer ones as if a network had been built for no others."""
    view, images = network(name, size)
    order = torch.stack([torch.randperm(16) for _ in range(2)])
    with torch.no_grad():
        want = view.encode(view.embed(images))
        (got,) = view.encode_visible(images, order, [1])
        torch.testing.assert_close(got, torch.stack([all_[here] for all_, here in zip(want, order, strict=True)]))
        before = view.encode_visible(images, order[:, :5], [0, 1])
        hidden = torch.ones(2, 16).scatter(1, order[:, :5], 0).view(2, 1, 4, 4)
        hidden = hidden.repeat_interleave(size // 4, 2).repeat_interleave(size // 4, 3)
        after = view.encode_visible(images + hidden, order[:, :5], [0, 1])
    assert [tap.shape for tap in before] == [(2, 5, 64)] * 2
    assert all(torch.equal(*taps) for taps in zip(before, after, strict=True))
    moved = view.encode_visible(images, order[:, :5].flip(1), [1])[0].flip(1)
    torch.testing.assert_close(moved, before[1])


def test_rotary_positions_turn_queries_and_keys_by_their_places() -> None:
    """The attention of a DINOv3, computed from its queries and keys in NumPy with the angles of its publication."""
    view, images = network("vit_small_patch16_dinov3", 64)
    outputs: list[torch.Tensor] = []
    hook = view.network.blocks[0].attn.qkv.register_forward_hook(lambda _, __, out: outputs.append(out))
    with torch.no_grad():
        got = view.attention(images)[0].numpy()
    hook.remove()
    q, k, _ = outputs[0].view(2, 21, 3, 2, 32).permute(2, 0, 3, 1, 4).double().numpy()
    middles = (np.arange(4) + 0.5) / 4 * 2 - 1
    places = np.stack(np.meshgrid(middles, middles, indexing="ij"), axis=-1).reshape(16, 2)
    angles = 2 * math.pi * (places[:, :, None] / 100 ** (np.arange(8) / 8)).reshape(16, 16)
    sin, cos = (np.tile(function(angles), (1, 2)) for function in (np.sin, np.cos))

    def turned(x: np.ndarray) -> np.ndarray:
        patches = x[:, :, 5:]
        across = np.concatenate([-patches[..., 16:], patches[..., :16]], axis=-1)
        return np.concatenate([x[:, :, :5], patches * cos + across * sin], axis=2)

    scores = turned(q) @ turned(k).transpose(0, 1, 3, 2) / math.sqrt(32)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    np.testing.assert_allclose(got, shares / shares.sum(-1, keepdims=True), atol=1e-5)


@each_network
def test_a_masked_model_learns_and_checkpoints_its_blocks(name: str, size: int, prefix: int) -> None:
    """Gradients reach every parameter, and are the same where blocks compute twice to keep less."""
    torch.manual_seed(0)
    width = target_width(size // 4)
    assert width == 108
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[:, 1:3, 1:] = True
    for decoder in (None, "light"):
        model = MaskFeat(build_network(name, size, None, 0, **SMALL), width, "random", decoder, 32)
        images, gradients = torch.randn(2, 3, size, size), []
        for again in (False, True):
            model.view.checkpoint_blocks(again)
            model.zero_grad()
            predictions = model(images, mask)
            assert predictions.shape == (12, width)
            predictions.square().mean().backward()
            gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@each_network
@pytest.mark.parametrize("classes", [0, 7])
def test_an_export_is_bit_equal_in_timm(name: str, size: int, prefix: int, classes: int, tmp_path: Path) -> None:
    view, images = network(name, size, classes)
    export_timm(view.network, tmp_path / "out", image_size=size, options=dict(SMALL), **STATISTICS)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        got = theirs(images)
        assert torch.equal(got, view.head(view.pooled(images)))
        assert got.shape == (2, classes or 64) and torch.isfinite(got).all() and got.std() > 0


@each_network
@pytest.mark.parametrize("task", ["pretrain", "finetune"])
def test_a_model_starts_from_weights_that_timm_wrote(
    name: str, size: int, prefix: int, task: str, tmp_path: Path
) -> None:
    """As timm builds them of published weights: with a head of classes or without, here without."""
    theirs = lively(timm.create_model(name, img_size=size, num_classes=0, **SMALL))
    save_for_hf(theirs, str(tmp_path / "folder"), safe_serialization=True)
    classes = 3 if task == "finetune" else 0
    built = build_network(name, size, None, classes, **SMALL)
    model = Classifier(built) if classes else MaskFeat(built)
    fill(model, read(tmp_path / "folder"))
    images, fresh = torch.randn(1, 3, size, size), ("norm.", "fc_norm.", "head.")
    state = theirs.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in built.state_dict().items() if not key.startswith(fresh))
    built.norm = theirs.norm = nn.Identity()  # timm has some behind the pooling
    with torch.no_grad():
        assert torch.equal(built.eval().forward_features(images), theirs.forward_features(images))


def test_positions_of_another_grid_are_resampled_but_for_those_of_no_token(tmp_path: Path) -> None:
    """Register and class tokens of a DINOv2 with registers have no positions, so all of them are of patches."""
    name = "vit_small_patch14_reg4_dinov2"
    theirs = lively(timm.create_model(name, img_size=70, num_classes=0, **SMALL))
    save_for_hf(theirs, str(tmp_path / "folder"), safe_serialization=True)
    model = MaskFeat(build_network(name, 56, None, 0, **SMALL))
    notes = fill(model, read(tmp_path / "folder"))
    assert "pos_embed resampled to 4x4 patches" in " ".join(notes)
    want = resample_abs_pos_embed(theirs.pos_embed, [4, 4], num_prefix_tokens=0)
    assert torch.equal(model.encoder.pos_embed, want)


def test_onnx_gives_the_features_of_torch(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    view, _ = network("vit_small_patch16_dinov3", 64)
    assert export_onnx(view.network, tmp_path / "encoder.onnx") < 1e-3


def test_layers_of_parameters() -> None:
    view, _ = network("vit_small_patch16_dinov3", 64)
    layers = {name: view.layer_of(name) for name in view.network.state_dict()}
    assert {layers[name] for name in ("cls_token", "reg_token", "patch_embed.proj.weight")} == {0}
    assert layers["blocks.1.gamma_1"] == 2 and layers["norm.weight"] == 3


def test_products_are_counted() -> None:
    """Patch embedding, and per block and token four square matrices and two of four times the width; attention."""
    view, _ = network("vit_small_patch16_dinov3", 64)
    assert view.macs() == 16 * 768 * 64 + 2 * (21 * 12 * 64 * 64 + 2 * 21 * 21 * 64)


def test_absolute_positions_are_asked_for_where_there_are_none() -> None:
    with pytest.raises(ValueError, match="position_init=sincos needs an encoder with absolute positions"):
        MaskFeat(build_network("vit_small_patch16_dinov3", 64, None, 0, **SMALL), 108, "sincos")
