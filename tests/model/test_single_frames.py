"""Images beside clips: one network takes both, and an image is what it is to a network of single frames."""

from typing import Any

import pytest
import torch
from torch import Tensor

from model.encoders.registry import build_network
from model.layout import Layout
from model.maskfeat import MaskFeat

MVIT: tuple[str, dict[str, Any]] = ("mvit_v2", {"embed_dim": 16, "depth": 4, "stages": [1, 2]})
TUBELET: tuple[str, dict[str, Any]] = ("vit_tiny_patch16_224", {"embed_dim": 32, "depth": 4, "num_heads": 2})
CASES = [(MVIT, {}), (TUBELET, {}), (TUBELET, {"decoder": "light"}), (TUBELET, {"decoder": "local"})]


def maskfeat(family: tuple[str, dict[str, Any]], frames: int, options: dict[str, Any]) -> MaskFeat:
    torch.manual_seed(frames)
    width = 4 * (1 + 4 + 16 + 1) if options.get("decoder") == "local" else 108
    network = build_network(family[0], 64, frames, 0, **family[1])
    return MaskFeat(network, width, decoder_width=64, **options).eval()


def weights_for_single_frames(model: MaskFeat) -> dict[str, Tensor]:
    """Return the weights of a model of clips without the positions of all frames but the first."""
    weights = dict(model.state_dict())
    for name, value in weights.items():
        if name.endswith("pos_embed_temporal"):
            weights[name] = value[:, :1]
        elif name.endswith("rel_pos_t"):  # of distances -3 to 3: 0
            weights[name] = value[3:4]
    return weights


def half(batch: int) -> Tensor:
    return (torch.arange(batch)[:, None, None] + torch.arange(2)[:, None] + torch.arange(2)) % 2 == 0


@pytest.mark.parametrize(("family", "options"), CASES)
def test_an_image_beside_clips_is_one_of_a_network_of_single_frames(
    family: tuple[str, dict[str, Any]], options: dict[str, Any]
) -> None:
    clips, single = maskfeat(family, 8, options), maskfeat(family, 1, options)
    single.load_state_dict(weights_for_single_frames(clips))
    for name, table in clips.named_buffers():  # fixed positions of a decoder, which are not among the weights
        if name.endswith("positions"):
            single.get_submodule(name.removesuffix(".positions")).positions = table[:16]
    images, mask = torch.randn(3, 3, 1, 64, 64), half(3)
    with torch.no_grad():
        of_clips = clips(torch.randn(3, 3, 8, 64, 64), half(3)[:, None].repeat(1, 4, 1, 1))
        assert len(of_clips) == 4 * len(single(images, mask))
        torch.testing.assert_close(clips(images, mask), single(images, mask), atol=0, rtol=0)


@pytest.mark.parametrize("family", [MVIT, TUBELET])
def test_the_grids_of_single_frames_are_those_of_a_frame_of_a_clip(family: tuple[str, dict[str, Any]]) -> None:
    view = maskfeat(family, 8, {}).view
    images = view.single_frames
    assert images is not None and images.single_frames is None and images.network is view.network
    for layout in ("mask_layout", "token_layout", "prediction_layout"):
        of_clips = getattr(view, layout)
        assert getattr(images, layout) == Layout(1, of_clips.rows, of_clips.columns)
    assert images.input_shape == (3, 1, 64, 64) and images.prediction_patch == view.prediction_patch
    assert images.macs() < view.macs() / 4 + 1
    assert maskfeat(family, 1, {}).view.single_frames is None


@pytest.mark.parametrize(("family", "options"), CASES)
def test_every_parameter_has_a_gradient_on_either(family: tuple[str, dict[str, Any]], options: dict[str, Any]) -> None:
    """Ranks of DeepSpeed wait for the gradients of all parameters."""
    model = maskfeat(family, 8, options).train()
    for frames in (1, 8):
        mask = half(2) if frames == 1 else half(2)[:, None].repeat(1, 4, 1, 1)
        model.zero_grad()
        model(torch.randn(2, 3, frames, 64, 64), mask).square().mean().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
