"""Encoding visible patches only: what such a model sees, and what its decoders compute."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from model.convert import fill
from model.decoders import SCALES, LocalDecoder, spread_taps, visible_cells
from model.encoders.registry import build_network, encoder_of
from model.flops import forward_macs
from model.layout import Layout, make_mask
from model.maskfeat import MaskFeat
from model.weights import TIMM, Weights

SMALL = {"embed_dim": 64, "depth": 4, "num_heads": 2}
WIDTHS = {"light": 108, "local": 594}


def small(decoder: str | None = "light", frames: int | None = None, **options: object) -> MaskFeat:
    torch.manual_seed(0)
    network = build_network("vit_tiny_patch16_224", 64, frames, **{**SMALL, **options})
    return MaskFeat(network, WIDTHS.get(decoder or "", 108), "fixed", decoder, 32)  # type: ignore[arg-type]


def random_mask(masks: int, masked: int, shape: tuple[int, ...] = (4, 4)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(masks)
    cells = torch.Size(shape).numel()
    order = torch.rand(masks, cells, generator=generator).argsort(1)
    return (order < masked).view(masks, *shape)


@pytest.mark.parametrize(
    ("frames", "options"),
    [
        (None, {}),
        (None, {"reg_tokens": 3}),
        (None, {"reg_tokens": 3, "no_embed_class": True}),
        (None, {"class_token": False}),
        (4, {}),
        (1, {}),
    ],
)
def test_all_patches_in_order_are_encoded_as_ever(frames: int | None, options: dict[str, object]) -> None:
    """Positions are drawn, so that a patch at the wrong place would show."""
    view = encoder_of(build_network("vit_tiny_patch16_224", 64, frames, **{**SMALL, **options}))
    view.initialise("random")
    inputs = torch.randn(2, *view.input_shape)
    everything = torch.arange(view.token_layout.cells).expand(2, -1)
    expected = view.encode(view.embed(inputs))
    torch.testing.assert_close(view.encode_visible(inputs, everything, [3])[0], expected, atol=2e-5, rtol=1e-4)
    shuffled = torch.stack([torch.randperm(view.token_layout.cells) for _ in range(2)])
    found = view.encode_visible(inputs, shuffled, [1, 3])[1]
    moved = expected.gather(1, shuffled[..., None].expand_as(expected))
    torch.testing.assert_close(found, moved, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("decoder", ["light", "local"])
@pytest.mark.parametrize("frames", [None, 4])
def test_hidden_pixels_change_nothing_and_visible_ones_do(decoder: str, frames: int | None) -> None:
    model = small(decoder, frames)
    inputs = torch.randn(2, *model.view.input_shape)
    mask = random_mask(2, 9) if frames is None else random_mask(2, 5, model.view.mask_layout.shape)
    hidden = mask.repeat_interleave(64 // mask.shape[-2], -2).repeat_interleave(64 // mask.shape[-1], -1)
    hidden = hidden[:, None] if frames is None else hidden.repeat_interleave(2, 1)[:, None]
    before = model(inputs, mask)
    assert torch.equal(model(torch.where(hidden, torch.randn_like(inputs), inputs), mask), before)
    assert not torch.allclose(model(torch.where(hidden, inputs, torch.randn_like(inputs)), mask), before)


def test_the_light_decoder_is_what_it_says() -> None:
    """Step by step and image by image, by timm's own encoder with the hidden patches dropped."""
    model, images, mask = small("light"), torch.randn(3, 3, 64, 64), random_mask(3, 12)
    network, decoder, filling = model.encoder, model.decoder, model.decoder.filling
    expected = []
    for image, hidden in zip(images, mask.flatten(1), strict=True):
        tokens = network._pos_embed(network.patch_embed(image[None]))
        kept = torch.cat([torch.tensor([True]), ~hidden])
        encoded = network.norm(network.blocks(tokens[:, kept]))[0, 1:]
        grid = filling.mask_token[0].repeat(16, 1)
        grid[~hidden] = filling.project(encoded)
        described = filling.norm(filling.blocks((grid + filling.positions)[None]))[0]
        expected.append(decoder.head(described[hidden]))
    torch.testing.assert_close(model(images, mask), torch.cat(expected), atol=1e-5, rtol=1e-4)


def test_the_local_decoder_is_the_published_one_of_transposed_convolutions() -> None:
    """Over the whole grid, hidden or not, and then read off where patches are hidden."""
    model, images, mask = small("local"), torch.randn(2, 3, 64, 64), random_mask(2, 12)
    decoder, hidden = model.decoder, mask.flatten(1)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    found = model(images, mask).split([432, 108, 27, 27], dim=1)
    visible = visible_cells(hidden, 12)
    for index, encoded in enumerate(model.view.encode_visible(images, visible, decoder.taps)):
        normed = decoder.norms[index](encoded) if index < 3 else encoded
        grid = decoder.fillings[index](normed, visible, 16).transpose(1, 2).unflatten(2, (4, 4))
        layers = list(decoder.heads[index])
        if SCALES[index] > 1:
            grid = F.avg_pool2d(grid, 2)
        for layer, following in zip(layers, [*layers[1:], None], strict=True):
            if isinstance(layer, nn.LayerNorm):
                grid = layer(grid.movedim(1, -1)).movedim(-1, 1)
            elif isinstance(layer, nn.GELU):
                grid = layer(grid)
            elif isinstance(layer, nn.Linear) and following is not None:
                width = layer.in_features
                kernel = layer.weight.view(2, 2, -1, width).permute(3, 2, 0, 1)
                grid = F.conv_transpose2d(grid, kernel, stride=2)
                grid = grid + layer.bias.view(2, 2, -1).permute(2, 0, 1).repeat(1, *(s // 2 for s in grid.shape[2:]))
            elif isinstance(layer, nn.Linear):
                grid = F.conv2d(grid, layer.weight[..., None, None], layer.bias)
        side = grid.shape[2] // 4
        if side:  # (B, numbers, 4 * side, 4 * side) -> (B, patches, numbers * side * side)
            expected = grid.view(2, 27, 4, side, 4, side).permute(0, 2, 4, 1, 3, 5).reshape(2, 16, -1)
        else:
            expected = F.interpolate(grid, scale_factor=2, mode="nearest").flatten(2).transpose(1, 2)
        torch.testing.assert_close(found[index], expected[hidden], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("decoder", [None, "light", "local"])
def test_several_masks_of_an_input_are_views_of_it(decoder: str | None) -> None:
    model, images, mask = small(decoder), torch.randn(2, 3, 64, 64), random_mask(6, 12)
    expected = model(images.repeat_interleave(3, 0), mask)
    torch.testing.assert_close(model(images, mask), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="5 masks for 2 inputs"):
        model(images, mask[:5])


def test_taps_are_the_published_ones_or_spread_evenly() -> None:
    assert (spread_taps(12), spread_taps(24), spread_taps(8)) == ((1, 3, 9, 11), (1, 3, 21, 23), (1, 3, 5, 7))
    for depth in (4, 5, 6, 7):
        taps = spread_taps(depth)
        assert taps[-1] == depth - 1 and len(set(taps)) == 4 and min(taps) >= 0
    with pytest.raises(ValueError, match="four blocks, and the encoder has 3"):
        spread_taps(3)


def test_fixed_positions_are_the_table_and_stay_it() -> None:
    model, learned = small(), small(None)
    learned.view.initialise("sincos")
    assert torch.equal(model.encoder.pos_embed[:, 1:], learned.encoder.pos_embed[:, 1:])
    assert not model.encoder.pos_embed[:, 0].any()
    model(torch.randn(2, 3, 64, 64), random_mask(2, 12)).sum().backward()
    assert model.encoder.pos_embed.grad is None
    assert all(p.grad is not None for name, p in model.named_parameters() if name != "encoder.pos_embed")


def test_starting_from_others_weights_leaves_fixed_positions_alone() -> None:
    model, other = small(), small(None)
    nn.init.normal_(other.encoder.pos_embed)
    table = model.encoder.pos_embed.clone()
    tensors = {
        name.removeprefix("encoder."): p for name, p in other.state_dict().items() if name.startswith("encoder.")
    }
    notes = fill(model, Weights("others", TIMM, tensors))  # type: ignore[arg-type]
    assert torch.equal(model.encoder.pos_embed, table)
    assert torch.equal(model.encoder.blocks[2].attn.qkv.weight, other.encoder.blocks[2].attn.qkv.weight)
    assert any("encoder.pos_embed" in note and "start anew" in note for note in notes)


@pytest.mark.parametrize("decoder", ["light", "local"])
@pytest.mark.parametrize("frames", [None, 4])
def test_products_are_counted(decoder: str, frames: int | None) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        model = small(decoder, frames)
        layout = model.view.prediction_layout
        cells = torch.zeros(1, *layout.shape, dtype=torch.bool)
        model(torch.zeros(1, *model.view.input_shape), make_mask(cells, layout, 12))
    assert counter.get_total_flops() == 2 * forward_macs(model, 12)


@pytest.mark.parametrize("decoder", ["light", "local"])
def test_masks_that_hide_different_numbers_are_refused(decoder: str) -> None:
    """Otherwise hidden patches of one image would be encoded, and visible ones of another left out."""
    model, images = small(decoder), torch.randn(2, 3, 64, 64)
    mask = torch.cat([random_mask(1, 10), random_mask(1, 14)])
    with pytest.raises(ValueError, match="masks that hide equally many cells"):
        model(images, mask)
    assert small(None)(images, mask).shape == (24, 108)


def test_what_does_not_fit_is_refused() -> None:
    odd = encoder_of(timm.create_model("vit_tiny_patch16_224", img_size=48, num_classes=0, **SMALL))
    with pytest.raises(ValueError, match=r"grid of 3x3: change data\.image_size"):
        LocalDecoder(odd, 32, 594)
    with pytest.raises(ValueError, match=r"set target\.kind=hog_scales"):
        small_with_width = encoder_of(build_network("vit_tiny_patch16_224", 64, **SMALL))
        LocalDecoder(small_with_width, 32, 108)
    with pytest.raises(ValueError, match=r"model\.decoder_width=40 is not a multiple of 32"):
        MaskFeat(build_network("vit_tiny_patch16_224", 64, **SMALL), 108, "fixed", "light", 40)
    for name, frames in (("beit_base_patch16_224", None), ("mvit_v2_s", 2)):
        options = SMALL if frames is None else {}
        model = MaskFeat(build_network(name, 64, frames, **options), 108, "random", "light", 32)
        with pytest.raises(ValueError, match="plain ViT"):
            masked = Layout(1, 4, 4) if frames is None else model.view.mask_layout
            model(torch.zeros(1, *model.view.input_shape), torch.zeros(1, *masked.shape, dtype=torch.bool))
