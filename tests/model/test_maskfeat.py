"""The model: what it may see, what it returns, how it starts."""

import numpy as np
import pytest
import torch
from making import mask_of

from model.encoders.positions import sincos_positions
from model.maskfeat import MaskFeat, build_encoder

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 2}


def small(**options: object) -> MaskFeat:
    torch.manual_seed(0)
    return MaskFeat(build_encoder("vit_tiny_patch16_224", 64, **{**SMALL, **options}))


def random_mask(batch: int, masked: int) -> torch.Tensor:
    mask = torch.zeros(batch, 16, dtype=torch.bool)
    for row in mask:
        row[torch.randperm(16)[:masked]] = True
    return mask.reshape(batch, 4, 4)


def test_predictions_follow_the_mask_row_major_image_by_image() -> None:
    model, images, mask = small(), torch.randn(3, 3, 64, 64), random_mask(3, 5)
    predictions = model(images, mask)
    assert predictions.shape == (15, 108)
    assert torch.equal(model(images, mask_of(mask)), predictions)
    # One image at a time, every patch's prediction read off at its own place
    for index in range(3):
        alone = model(images[index : index + 1], mask[index : index + 1])
        torch.testing.assert_close(alone, predictions[index * 5 : index * 5 + 5], atol=1e-5, rtol=1e-4)


def test_masked_pixels_are_not_seen_and_visible_ones_are() -> None:
    model, images, mask = small(), torch.randn(2, 3, 64, 64), random_mask(2, 6)
    hidden = mask.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    before = model(images, mask)
    assert torch.equal(model(torch.where(hidden, torch.randn_like(images), images), mask), before)
    assert not torch.allclose(model(torch.where(hidden, images, torch.randn_like(images)), mask), before)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {}),
        ("beit_base_patch16_224", {}),
        ("beit_base_patch16_224", {"use_shared_rel_pos_bias": True, "use_rel_pos_bias": False}),
        ("beit_base_patch16_224", {"use_abs_pos_emb": True}),
    ],
)
def test_unmasked_forward_is_timms_own(name: str, options: dict[str, bool]) -> None:
    """With nothing masked, the tokens that reach the head are timm's `forward_features`."""
    torch.manual_seed(0)
    model, images = MaskFeat(build_encoder(name, 64, **SMALL, **options)), torch.randn(2, 3, 64, 64)
    for key, parameter in model.named_parameters():
        if "relative_position" in key:
            torch.nn.init.normal_(parameter)
    seen = []
    model.encoder.norm.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        model(images, torch.zeros(2, 4, 4, dtype=torch.bool))
        features = model.encoder.forward_features(images)
    torch.testing.assert_close(seen[0], features)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224"])
def test_blocks_compute_twice_to_keep_less_and_give_the_same_gradients(name: str) -> None:
    torch.manual_seed(0)
    model, images, mask = MaskFeat(build_encoder(name, 64, **SMALL)), torch.randn(2, 3, 64, 64), random_mask(2, 5)
    calls, gradients = [], []
    model.encoder.blocks[0].register_forward_pre_hook(lambda module, args: calls.append(module))
    for again in (False, True):
        model.encoder.set_grad_checkpointing(again)
        model.zero_grad()
        model(images, mask).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert len(calls) == 1 + 2
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("name", "size", "width"),
    [("vit_tiny_patch16_224", 96, 108), ("vit_small_patch32_224", 64, 432), ("vit_small_patch8_224", 32, 27)],
)
def test_other_vision_transformers(name: str, size: int, width: int) -> None:
    encoder = build_encoder(name, size, depth=1)
    model = MaskFeat(encoder, width)
    mask = torch.zeros(1, *model.view.mask_layout.shape, dtype=torch.bool)
    mask[0, 0, 1] = mask[0, 1, 0] = True
    assert model(torch.randn(1, 3, size, size), mask).shape == (2, width)


def test_start() -> None:
    """Truncated normals of 0.02, zero biases; every parameter but the frozen-by-nature ones gets a gradient."""
    model = small()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" not in name:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.25), name
    model(torch.randn(2, 3, 64, 64), random_mask(2, 5)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_sincos_positions_tell_places_apart_and_near_from_far() -> None:
    table = sincos_positions((6, 8), 32).reshape(6, 8, 32)
    here = table[2, 3]
    similarity = (table @ here).numpy()
    assert similarity.argmax() == np.ravel_multi_index((2, 3), (6, 8))
    assert similarity[2, 4] > similarity[2, 6] and similarity[3, 3] > similarity[5, 3]
    assert torch.equal(table[2, :, 16:], table[2, :1, 16:].expand(8, 16))  # the second half encodes the row
    model = MaskFeat(build_encoder("vit_tiny_patch16_224", 64, **SMALL), 108, "sincos")
    torch.testing.assert_close(model.encoder.pos_embed[0, 1:], sincos_positions((4, 4), 48))


@pytest.mark.parametrize(("name", "message"), [("vit_bass_patch16_224", "near it"), ("resnet18", "not a plain vision")])
def test_models_that_cannot_be_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(name, 64)


def test_sincos_positions_need_absolute_ones() -> None:
    with pytest.raises(ValueError, match="absolute positions"):
        MaskFeat(build_encoder("beit_base_patch16_224", 64, **SMALL), 108, "sincos")
