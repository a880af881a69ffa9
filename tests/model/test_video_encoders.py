"""Encoders of clips: their grids, what they may see, how they start, and what they cost."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model.classifier import HEAD_SCALE, Classifier
from model.encoders.positions import sincos_frames
from model.encoders.registry import build_network, encoder_of
from model.layout import Layout, Mask, make_mask, spread
from model.maskfeat import MaskFeat

MVIT: tuple[str, dict[str, Any]] = ("mvit_v2", {"embed_dim": 16, "depth": 4, "stages": [1, 2]})
TUBELET: tuple[str, dict[str, Any]] = ("vit_tiny_patch16_224", {"embed_dim": 32, "depth": 2, "num_heads": 2})
FAMILIES = [MVIT, TUBELET]


def network(family: tuple[str, dict[str, Any]], frames: int = 8, classes: int = 0, size: int = 64) -> nn.Module:
    return build_network(family[0], size, frames, classes, **family[1])


def maskfeat(family: tuple[str, dict[str, Any]], frames: int = 8, size: int = 64) -> MaskFeat:
    torch.manual_seed(0)
    return MaskFeat(network(family, frames, size=size))


def cubes(model: MaskFeat, batch: int = 2) -> Tensor:
    """Masks of equally many cells."""
    cells = model.view.mask_layout.cells
    mask = torch.zeros(batch, cells, dtype=torch.bool)
    for row in mask:
        row[torch.randperm(cells)[: max(1, cells // 3)]] = True
    return mask.reshape(batch, *model.view.mask_layout.shape)


@pytest.mark.parametrize(
    ("name", "size", "frames", "classes", "grids", "parameters"),
    [
        ("mvit_v2_s", 224, 16, 0, [(8, 7, 7), (8, 56, 56), (8, 14, 14)], 36_253_356),
        ("mvit_v2_s", 224, 16, 400, [(8, 7, 7), (8, 56, 56), (8, 7, 7)], 36_475_120),
        ("mvit_v2_l", 224, 16, 0, [(8, 7, 7), (8, 56, 56), (8, 14, 14)], 217_247_580),
        ("mvit_v2_l", 224, 16, 400, [(8, 7, 7), (8, 56, 56), (8, 7, 7)], 217_578_064),
        ("mvit_v2_l", 312, 40, 400, [(20, 10, 10), (20, 78, 78), (20, 10, 10)], None),
        ("mvit_v2_s", 224, 1, 0, [(1, 7, 7), (1, 56, 56), (1, 14, 14)], None),
        ("vit_base_patch16_224", 224, 16, 0, [(8, 7, 7), (8, 14, 14), (8, 14, 14)], None),
        ("vit_base_patch16_224", 240, 16, 0, [(8, 15, 15), (8, 15, 15), (8, 15, 15)], None),
        ("vit_base_patch16_224", 224, 1, 0, [(1, 7, 7), (1, 14, 14), (1, 14, 14)], None),
    ],
)
def test_published_geometries(
    name: str, size: int, frames: int, classes: int, grids: list[tuple[int, ...]], parameters: int | None
) -> None:
    """Grids of masks, tokens and predictions; parameters as in the published code, heads included."""
    with torch.device("meta"):
        built = build_network(name, size, frames, classes)
        model = Classifier(built) if classes else MaskFeat(built)
    view = model.view
    layouts = [view.mask_layout, view.token_layout, view.prediction_layout]
    assert layouts == [Layout(*grid) for grid in grids]
    assert view.input_shape == (3, frames, size, size) and view.classes == classes
    assert parameters in (None, sum(parameter.numel() for parameter in model.parameters()))


@pytest.mark.parametrize(("name", "classes"), [("mvit_v2_s", 0), ("mvit_v2_s", 400), ("vit_base_patch16_224", 0)])
def test_multiply_adds_are_those_that_torch_counts(name: str, classes: int) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        view = encoder_of(build_network(name, 224, 16, classes).eval())
        view.pooled(torch.empty(1, *view.input_shape))
    assert counter.get_total_flops() == 2 * view.macs()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("frames", [8, 1])
def test_predictions_follow_the_mask_clip_by_clip(family: tuple[str, dict[str, Any]], frames: int) -> None:
    model = maskfeat(family, frames).eval()
    clips, mask = torch.randn(2, *model.view.input_shape), cubes(maskfeat(family, frames))
    with torch.no_grad():
        predictions = model(clips, mask)
        every = model(clips, Mask(mask, torch.arange(2 * model.view.prediction_layout.cells)))
        alone = [model(clips[index : index + 1], mask[index : index + 1]) for index in range(2)]
    hidden = spread(mask, model.view.prediction_layout).flatten()
    assert torch.equal(predictions, every[hidden]) and predictions.shape == (int(hidden.sum()), 108)
    torch.testing.assert_close(torch.cat(alone), predictions, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mask_on_any_grid_that_divides_the_tokens(family: tuple[str, dict[str, Any]]) -> None:
    model = maskfeat(family).eval()
    clips, fine = torch.randn(2, *model.view.input_shape), model.view.prediction_layout
    tubes = torch.rand(2, 1, 2, 2) < 0.5
    same = spread(tubes, fine).reshape(2, *fine.shape)
    with torch.no_grad():
        assert torch.equal(model(clips, tubes), model(clips, same))
        with pytest.raises(ValueError, match="does not divide"):
            model(clips, torch.zeros(2, 3, 2, 2, dtype=torch.bool))


def test_masked_pixels_are_not_seen_by_tubelets_and_visible_ones_are() -> None:
    model = maskfeat(TUBELET).eval()
    clips, mask = torch.randn(2, 3, 8, 64, 64), cubes(model)
    pixels = mask.repeat_interleave(2, 1).repeat_interleave(32, 2).repeat_interleave(32, 3)[:, None]
    with torch.no_grad():
        before = model(clips, mask)
        assert torch.equal(model(torch.where(pixels, torch.randn_like(clips), clips), mask), before)
        assert not torch.allclose(model(torch.where(pixels, clips, torch.randn_like(clips)), mask), before)


def test_a_mvit_sees_hidden_pixels_only_where_its_kernel_overlaps() -> None:
    """Three pixels beside a mask and a frame before it, as in the published code; further inside, none."""
    model = maskfeat(MVIT).eval()
    clips, mask = torch.randn(1, 3, 8, 64, 64), torch.zeros(1, 4, 2, 2, dtype=torch.bool)
    mask[:, :, 0, 0] = True
    with torch.no_grad():
        before = model(clips, mask)
        inside, border = clips.clone(), clips.clone()
        inside[..., :29, :29] = torch.randn(29, 29)
        border[..., :32, 31] = torch.randn(32)
        assert torch.equal(model(inside, mask), before) and not torch.equal(model(border, mask), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_order_of_frames_counts(family: tuple[str, dict[str, Any]]) -> None:
    """Positions of frames: a clip played backwards has other features, though its frames are the same."""
    view = maskfeat(family).view
    for parameter in view.network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    clips = torch.randn(1, *view.input_shape)
    with torch.no_grad():
        forth, back = view.pooled(clips), view.pooled(clips.unflatten(2, (4, 2)).flip(2).flatten(2, 3))
    assert not torch.allclose(forth, back, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_frame_is_a_clip_of_one_cell(family: tuple[str, dict[str, Any]]) -> None:
    """Shown twice to tubelets. All weights but those that lie along time are those of a model of clips."""
    single, clips = (network(family, frames).state_dict() for frames in (1, 8))
    along_time = {name for name in single if single[name].shape != clips[name].shape}
    assert single.keys() == clips.keys()
    assert all("rel_pos_t" in name or name == "pos_embed_temporal" for name in along_time) and along_time
    view = maskfeat(family, 1).view
    image = torch.randn(2, 3, 1, 64, 64)
    with torch.no_grad():
        assert view.embed(image).shape == (2, view.token_layout.cells, view.embedding_width)
        if family is TUBELET:
            two = view.network.patch_embed(torch.cat([image, image], 2))
            torch.testing.assert_close(view.embed(image), two)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_compute_twice_to_keep_less_and_give_the_same_gradients(family: tuple[str, dict[str, Any]]) -> None:
    model = maskfeat(family)
    clips, mask = torch.randn(2, *model.view.input_shape), cubes(model)
    calls: list[Any] = []
    gradients = []
    model.encoder.blocks[0].register_forward_pre_hook(lambda module, args: calls.append(module))
    for again in (False, True):
        model.view.checkpoint_blocks(again)
        model.zero_grad()
        model(clips, mask).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])  # type: ignore[union-attr]
    assert len(calls) == 1 + 2
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_pooled_blocks(family: tuple[str, dict[str, Any]]) -> None:
    """The last block's is the feature; one of another width is normalised without scale and shift."""
    view = maskfeat(family).view
    clips = torch.randn(2, *view.input_shape)
    with torch.no_grad():
        first, last = view.pooled_blocks(clips, [0, view.depth - 1], "mean")
        (token,) = view.pooled_blocks(clips, [view.depth - 1], "class")
        torch.testing.assert_close(last, view.pooled(clips))
        torch.testing.assert_close(last, view.encode(view.embed(clips)).mean(1))
    assert last.shape == token.shape == (2, view.width) and not torch.allclose(token, last)
    assert first.shape[1] == (32 if family is MVIT else view.width)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("classes", [0, 3])
def test_start(family: tuple[str, dict[str, Any]], classes: int) -> None:
    """As in the published code: truncated normals of 0.02, biases of 0.02 but for the prediction head."""
    torch.manual_seed(0)
    built = network(family, classes=classes)
    model = Classifier(built) if classes else MaskFeat(built)
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        if name == "head.bias" or (not classes and name == "encoder.norm.bias"):
            assert not value.any(), name
        elif name.endswith(("conv_proj.bias", "patch_embed.proj.bias")):
            bound = model.state_dict()[name.replace("bias", "weight")][0].numel() ** -0.5
            assert value.abs().max() <= bound and value.std() > bound / 3, name
        elif name.startswith("encoder.head"):
            want = torch.full_like(value, 0.02 * HEAD_SCALE)
            assert torch.allclose(value, want) if name.endswith("bias") else 1e-5 < value.std() < 3e-5, name
        elif name.endswith("bias"):
            assert torch.equal(value, torch.full_like(value, 0.02)), name
        elif name.endswith("weight") and value.ndim == 1:
            assert torch.equal(value, torch.ones_like(value)), name
        else:
            assert value.std().item() == pytest.approx(0.02, rel=0.35), name


def test_layers_and_decay() -> None:
    """Layer 0 embeds, block i is layer i + 1, all after the last block is one more: as in the published code."""
    for family, first, last in (
        (MVIT, {"conv_proj", "pos_encoding"}, {"norm", "head"}),
        (TUBELET, {"patch_embed", "cls_token", "pos_embed_class", "pos_embed_spatial", "pos_embed_temporal"},
         {"fc_norm", "head"}),
    ):  # fmt: skip
        view = encoder_of(network(family, classes=3))
        for name, parameter in view.network.named_parameters():
            part, layer = name.split(".")[0], view.layer_of(name)
            assert (part in first, part in last) == (layer == 0, layer == view.depth + 1), name
            assert part != "blocks" or layer == int(name.split(".")[1]) + 1
            assert (name in view.decayed_vectors) == (parameter.ndim == 1 and "token" in name), name


def test_sincos_positions_of_tubelets() -> None:
    model = MaskFeat(network(TUBELET), position_init="sincos")
    encoder = model.encoder
    assert torch.equal(encoder.pos_embed_temporal[0], sincos_frames(4, 32))
    near = sincos_frames(16, 32) @ sincos_frames(16, 32)[5]
    assert near.argmax() == 5 and near[6] > near[9]
    with pytest.raises(ValueError, match="set it to random for an MViT"):
        MaskFeat(network(MVIT), position_init="sincos")


@pytest.mark.parametrize(
    ("name", "size", "frames", "options", "message"),
    [
        ("mvit_v2_s", 224, None, {}, "takes clips"),
        ("mvit_v2_s", 224, 3, {}, "even number of frames"),
        ("mvit_v2_s", 222, 16, {}, "multiple of 4"),
        ("mvit_v2_s", 224, 16, {"patch_size": 8}, "no option patch_size"),
        ("mvit_v2", 64, 8, {"depth": 4}, "stages="),
        ("mvit_v2", 64, 8, {"depth": 1, "stages": []}, "depth=1"),
        ("mvit_v2", 64, 8, {"stages": [3, 1]}, "ascending"),
        ("mvit_v2", 64, 8, {"q_stride_blocks": [16]}, "q_stride_blocks"),
        ("mvit_v2", 64, 8, {"embed_dim": 30, "num_heads": 4}, "not divisible by num_heads=4"),
        ("vit_tiny_patch16_224", 64, 5, {}, "even number of frames"),
        ("vit_tiny_patch16_224", 64, 8, {"reg_tokens": 4}, "one class token"),
        ("beit_base_patch16_224", 64, 8, {}, "plain transformer"),
        ("mvitv2_small", 64, 8, {}, "not a plain vision transformer"),
    ],
)
def test_what_cannot_be_built(name: str, size: int, frames: int | None, options: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_network(name, size, frames, **options)


def test_compiled_as_one_graph() -> None:
    """`engine.compile=all` compiles the model's forward without breaks."""
    model = maskfeat(MVIT)
    clips, mask = torch.randn(1, *model.view.input_shape), cubes(model, 1)
    given = make_mask(mask, model.view.prediction_layout, int(spread(mask, model.view.prediction_layout).sum()))
    compiled = torch.compile(model.forward, dynamic=False, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(clips, given), model(clips, given))
