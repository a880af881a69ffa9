"""Encoders of inputs that are not square: rows and columns are told apart, and positions come from any other grid."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.classifier import Classifier
from model.convert import fill
from model.encoders.registry import build_network, encoder_of
from model.export import export_timm
from model.maskfeat import MaskFeat
from model.size import ImageSize, Sides
from model.weights import TIMM, Weights, WeightsError, read

SMALL = {"embed_dim": 32, "depth": 4, "num_heads": 2}
FAMILIES: dict[str, tuple[str, int | None, dict[str, Any]]] = {
    "ViT": ("vit_tiny_patch16_224", None, SMALL),
    "DINOv2": ("vit_small_patch14_reg4_dinov2", None, SMALL),
    "DINOv3": ("vit_small_patch16_dinov3", None, SMALL),
    "BEiT": ("beit_base_patch16_224", None, SMALL),
    "tubelet ViT": ("vit_tiny_patch16_224", 4, SMALL),
    "MViT": ("mvit_v2", 4, {"embed_dim": 16, "depth": 3, "num_heads": 1, "stages": [1], "q_stride_blocks": [1]}),
}


def built(family: str, rows: int, columns: int, classes: int = 0) -> Any:
    """Return a network on a grid of `rows` x `columns` patches, with random weights everywhere."""
    name, frames, options = FAMILIES[family]
    patch = 14 if family == "DINOv2" else 16
    torch.manual_seed(rows)
    network = build_network(name, (rows * patch, columns * patch), frames, classes, **options)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


def transposed(name: str, value: Tensor, rows: int, columns: int) -> Tensor:
    """Return a network's tensor for transposed inputs: transpose kernels and the positions of patches."""
    if name.endswith("pos_embed") or name == "pos_embed_spatial":
        count = rows * columns
        grid = value[:, -count:].unflatten(1, (rows, columns)).transpose(1, 2).flatten(1, 2)
        return torch.cat([value[:, :-count], grid], dim=1)
    if name.endswith("relative_position_bias_table"):
        table = value[:-3].unflatten(0, (2 * rows - 1, 2 * columns - 1)).transpose(0, 1).flatten(0, 1)
        return torch.cat([table, value[-3:]])
    return value.mT if value.ndim >= 4 else value


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "DINOv3"])  # its positions order the axes
def test_the_transposed_problem_has_the_transposed_result(family: str) -> None:
    network, other = built(family, 4, 6), built(family, 6, 4)
    state = {name: transposed(name, value, 4, 6) for name, value in network.state_dict().items()}
    state |= {name: value for name, value in other.state_dict().items() if name.endswith("relative_position_index")}
    for name in [name for name in state if name.endswith("rel_pos_h")]:
        across = name.replace("rel_pos_h", "rel_pos_w")
        state[name], state[across] = state[across], state[name]
    other.load_state_dict(
        {name: value for name, value in state.items() if "relative_position_index" not in name}, False
    )
    wide, upright = encoder_of(network), encoder_of(other)
    assert wide.input_shape == (*upright.input_shape[:-2], *upright.input_shape[:-3:-1])
    assert wide.macs() == upright.macs()
    inputs = torch.randn(2, *wide.input_shape)
    with torch.no_grad():
        tokens = wide.encode(wide.embed(inputs)).unflatten(1, wide.prediction_layout.shape)
        theirs = upright.encode(upright.embed(inputs.mT)).unflatten(1, upright.prediction_layout.shape)
    assert tokens.std() > 0.1
    torch.testing.assert_close(tokens, theirs.transpose(-3, -2), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["ViT", "DINOv2", "DINOv3", "tubelet ViT"])
def test_visible_patches_are_encoded_as_by_the_whole_network(family: str) -> None:
    view = encoder_of(built(family, 4, 6))
    inputs, cells = torch.randn(2, *view.input_shape), view.token_layout.cells
    order = torch.stack([torch.randperm(cells) for _ in range(2)])
    with torch.no_grad():
        expected = view.encode(view.embed(inputs))
        (found,) = view.encode_visible(inputs, order, [view.depth - 1])
    for one, wanted, places in zip(found, expected, order, strict=True):
        torch.testing.assert_close(one, wanted[places], atol=1e-4, rtol=1e-3)


def weights_of(network: nn.Module, size: Sides | None) -> Weights:
    return Weights(Path("file"), TIMM, network.state_dict(), image_size=None if size is None else ImageSize.of(size))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((4, 4), (4, 6)),
        ((4, 6), (6, 10)),
        ((4, 6), (6, 4)),  # as many patches
        ((6, 6), (4, 9)),  # as many
        ((4, 9), (6, 6)),
    ],
)
@pytest.mark.parametrize("family", ["ViT", "DINOv2", "tubelet ViT"])
def test_positions_are_resampled_from_the_grid_of_the_weights(
    family: str, old: tuple[int, int], new: tuple[int, int]
) -> None:
    network, model = built(family, *old), MaskFeat(built(family, *new))
    view = encoder_of(network)
    notes = fill(model, weights_of(network, view.input_shape[-2:]))  # type: ignore[arg-type]
    name = "pos_embed_spatial" if family == "tubelet ViT" else "pos_embed"
    theirs, ours = network.state_dict()[name], model.encoder.state_dict()[name]
    places = theirs[0, -old[0] * old[1] :].view(*old, -1).permute(2, 0, 1)[None]
    wanted = F.interpolate(places, new, mode="bicubic", antialias=True)[0].flatten(1).T
    torch.testing.assert_close(ours[0, -len(wanted) :], wanted, atol=1e-6, rtol=0)
    assert torch.equal(ours[:, : -len(wanted)], theirs[:, : -old[0] * old[1]])
    assert any(f"{name} resampled to" in note for note in notes)


@pytest.mark.parametrize(("size", "known"), [((64, 96), True), ((64, 64), False)])
def test_positions_of_the_same_grid_are_not_touched(size: tuple[int, int], known: bool) -> None:
    network, model = (built("ViT", size[0] // 16, size[1] // 16) for _ in range(2))
    notes = fill(MaskFeat(model), weights_of(network, size if known else None))
    assert torch.equal(model.pos_embed, network.pos_embed) and not any("resampled" in note for note in notes)


def test_relative_biases_are_resampled_by_rows_and_columns() -> None:
    """The biases of the transposed problem are transposed, and a grid of the same size may be another grid."""
    name, network = "blocks.1.attn.relative_position_bias_table", built("BEiT", 4, 6)
    state = {key: value for key, value in network.state_dict().items() if "relative_position_index" not in key}
    mirrored = {key: transposed(key, value, 4, 6) for key, value in state.items()}

    def resampled(tensors: dict[str, Tensor], size: ImageSize, new: tuple[int, int]) -> Tensor:
        model = MaskFeat(built("BEiT", *new))
        fill(model, Weights(Path("file"), TIMM, tensors, image_size=size))
        return model.encoder.state_dict()[name]

    wide = resampled(state, ImageSize(64, 96), (6, 10))
    upright = resampled(mirrored, ImageSize(96, 64), (10, 6))
    torch.testing.assert_close(wide, transposed(name, upright, 10, 6), atol=1e-5, rtol=0)
    assert torch.equal(wide[-3:], state[name][-3:]) and wide.std() > 0.1
    assert torch.equal(resampled(state, ImageSize(64, 96), (4, 6)), state[name])
    assert not torch.allclose(resampled(state, ImageSize(64, 96), (6, 4)), state[name])


def test_inputs_smaller_than_a_patch_do_not_have_a_grid() -> None:
    """A grid of 0x0 would have as many relative biases as one of 1x1."""
    state = built("BEiT", 4, 6).state_dict()
    name = "blocks.1.attn.relative_position_bias_table"
    state[name] = state[name][-4:]
    with pytest.raises(WeightsError, match=name):
        fill(MaskFeat(built("BEiT", 4, 6)), Weights(Path("file"), TIMM, state, image_size=ImageSize(8, 8)))


def test_the_size_is_read_from_the_exports_configuration(tmp_path: Path) -> None:
    """So that a classifier of another size has positions of the right places."""
    network = built("ViT", 4, 6)
    statistics = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    export_timm(network, tmp_path, image_size=(64, 96), options=SMALL, **statistics)
    weights = read(tmp_path)
    assert weights.image_size == (64, 96)
    one, other = (Classifier(built("ViT", 6, 4, 3)) for _ in range(2))
    fill(one, weights)
    fill(other, weights_of(network, (64, 96)))
    assert torch.equal(one.encoder.pos_embed, other.encoder.pos_embed)
    assert not torch.equal(one.encoder.pos_embed, network.pos_embed)
