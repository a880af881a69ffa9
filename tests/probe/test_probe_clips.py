"""Probes of clips: features and attention against independent arithmetic, pictures, exports, and a run of videos."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import metrics, pretrain
from making_videos import all_frames, encoded, film
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from model.encoders.encoder import Encoder
from model.encoders.registry import build_network, encoder_of
from model.export_video import export_video
from model.weights import Normalisation
from pipeline.checkpoints.checkpoint import chosen
from pipeline.cluster.world import join
from pipeline.data.views import CENTRE
from pipeline.pixels import normalise
from pipeline.probe.attention import attended_tokens, attention_weights, looked_at
from pipeline.probe.features import View, compute, load
from pipeline.probe.judge import Settings
from pipeline.probe.pictures import draw_attention, principal_colours, still
from pipeline.probe.probe import Asked, probe
from pipeline.probe.source import of_run, of_weights
from shards.build import build
from shards.manifest import Manifest

CPU = torch.device("cpu")
MVIT: tuple[str, dict[str, Any]] = ("mvit_v2", {"embed_dim": 16, "depth": 3, "stages": [1], "q_stride_blocks": [1]})
TUBELET: tuple[str, dict[str, Any]] = ("vit_tiny_patch16_224", {"embed_dim": 32, "depth": 2, "num_heads": 2})
FAMILIES = [MVIT, TUBELET]
NORMALISATION = (0.4, 0.5, 0.4), (0.2, 0.3, 0.2)
FRAMES = 4
CLIPS = (f"data.frames={FRAMES}", "data.sampling=stride", "data.stride=2", "data.lanes=1", "data.image_size=32")


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Shards of 32-pixel videos of two classes: those that move one way, and the same ones backwards."""
    out, shards = tmp_path_factory.mktemp("moving"), {}
    for name, seeds in (("train", range(12)), ("validation", range(12, 16))):
        for seed in seeds:
            frames = film(11 + seed % 3, 32, 32, seed)
            for label, shown in (("left", frames), ("right", frames[::-1])):
                folder = out / "source" / name / label
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{seed}.mp4").write_bytes(encoded(shown))
        build(out / "source" / name, out / name, samples_per_shard=8, workers=1)
        shards[name] = out / name
    return shards


def encoder(family: tuple[str, dict[str, Any]], frames: int = 8, size: int = 64) -> Encoder:
    """Weights that are not all alike to attention, as fresh ones are."""
    torch.manual_seed(0)
    view = encoder_of(build_network(family[0], size, frames, **family[1]).eval())
    for name, parameter in view.network.named_parameters():
        if "qkv" in name or "rel_pos" in name:
            nn.init.normal_(parameter, std=0.5)
    return view


def clips(view: Encoder, count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, *view.input_shape), dtype=torch.uint8)


def exported(family: tuple[str, dict[str, Any]], folder: Path, frames: int = FRAMES, size: int = 32) -> str:
    """Write the weights of `encoder` as `scripts/export.py` does; the folder."""
    network, normalisation = encoder(family, frames, size).network, Normalisation(*NORMALISATION)
    export_video(network, folder, name=family[0], options=family[1], normalisation=normalisation)
    return str(folder)


def softmax(scores: NDArray[Any]) -> NDArray[Any]:
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(shares / shares.sum(-1, keepdims=True))


def test_attention_of_a_tubelet_vit_is_what_queries_and_keys_make_it() -> None:
    view = encoder(TUBELET)
    inputs, outputs = clips(view), []
    for block in view.network.blocks:
        block.attn.qkv.register_forward_hook(lambda _, __, out: outputs.append(out))
    got = attention_weights(view, inputs)
    assert all(block.attn.fused_attn for block in view.network.blocks) and len(got) == 2
    for output, weights in zip(outputs, got, strict=True):
        q, k, _ = output.view(2, 65, 3, 2, 16).permute(2, 0, 3, 1, 4).numpy()
        want = softmax(q @ k.transpose(0, 1, 3, 2) / 4)
        np.testing.assert_allclose(weights, want, atol=1e-5)
        entropy = -(want * np.log(want)).sum(-1).mean()
        assert 1.5 < attended_tokens(weights) < 60 and abs(np.log(attended_tokens(weights)) - entropy) < 1e-4
    heads = want.mean(1)  # of the last block
    for pool, looked in (("class", heads[:, 0, 1:]), ("mean", heads[:, 1:, 1:].mean(1))):
        np.testing.assert_allclose(looked_at(got[-1], view, pool), looked.reshape(2, 4, 4, 4), atol=1e-5)


def test_attention_of_a_mvit_is_what_pooled_queries_and_keys_and_relative_positions_make_it() -> None:
    """In the first block keys are pooled by 8, in the second queries by 2 and keys by 4, in the last keys by 4."""
    view = encoder(MVIT)
    inputs = clips(view, 1)
    pooled: list[tuple[Tensor, tuple[int, int, int]]] = []
    for block in view.network.blocks:
        for pooling in (block.attn.pool_k, block.attn.pool_q):  # in which order they are called
            pooling.register_forward_hook(lambda _, __, out: pooled.append(out))
    got = attention_weights(view, inputs)
    assert [tuple(weights.shape[1:]) for weights in got] == [(1, 1025, 17), (2, 257, 65), (2, 257, 17)]
    for block, weights, keys, queries in zip(view.network.blocks, got, pooled[::2], pooled[1::2], strict=True):
        (k, k_grid), (q, q_grid) = ((tokens[0].double().numpy(), grid) for tokens, grid in (keys, queries))
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        for axis, name in enumerate(("rel_pos_t", "rel_pos_h", "rel_pos_w")):
            table = getattr(block.attn, name).detach().double().numpy()
            mine, theirs = (np.indices(grid)[axis].ravel() for grid in (q_grid, k_grid))
            ratio = k_grid[axis] / q_grid[axis]
            per_query, per_key = max(ratio, 1), max(1 / ratio, 1)
            apart = mine[:, None] * per_query - theirs * per_key + (k_grid[axis] - 1) * per_key
            scores[:, 1:, 1:] += np.einsum("hqc,qkc->hqk", q[:, 1:], table[apart.astype(int)])
        np.testing.assert_allclose(weights[0], softmax(scores), atol=1e-4)
    assert [layout.shape for layout in view.key_layouts] == [grid for _, grid in pooled[::2]]
    looked = got[-1][0].mean(0)[1:, 1:].mean(0).view(4, 2, 2)
    torch.testing.assert_close(looked_at(got[-1], view, "mean")[0], looked)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("frames", [8, 1])
def test_widths_and_keys_are_those_of_what_is_computed(family: tuple[str, dict[str, Any]], frames: int) -> None:
    view = encoder(family, frames)
    inputs = normalise(clips(view), torch.float32)
    with torch.no_grad():
        features = view.pooled_blocks(inputs, range(view.depth), "mean")
        weights = view.attention(inputs)
    assert tuple(of_block.shape[1] for of_block in features) == view.block_widths
    assert [of_block.shape[3] for of_block in weights] == [view.prefix + keys.cells for keys in view.key_layouts]
    shape = (2, *view.key_layouts[-1].shape)
    assert looked_at(weights[-1], view, "mean").shape == looked_at(weights[-1], view, "class").shape == shape


def test_attention_of_clips_is_drawn_frame_by_frame() -> None:
    """Rows of every second frame: as they are, lit where a key is looked at, and the colours of their features."""
    inputs = torch.full((2, 3, 4, 32, 48), 200, dtype=torch.uint8)
    inputs[:, :, 1::2] = 0  # frames that no key begins with
    looked = torch.full((2, 2, 2, 3), 0.25)
    looked[0, 1, 0, 2] = looked[1, 0, 1, 0] = 0.75
    looked[1, 1, 1, 1] = 0.5
    colours = torch.rand(2, 2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    picture = draw_attention(inputs, looked, colours)
    height, width = 32 + 14 + 4, 48 + 4
    assert picture.shape == (6 * height, 2 * width - 4, 3)

    def middle(clip: int, frame: int, row: int, column: int, of: int) -> Any:
        """The four pixels in the middle of a patch, where the light of its neighbours hardly counts."""
        top, left = (3 * clip + of) * height + 14 + 16 * row + 7, frame * width + 16 * column + 7
        return picture[top : top + 2, left : left + 2].astype(float)

    lit = {(0, 1, 0, 2): 200, (1, 0, 1, 0): 200, (1, 1, 1, 1): 120}
    for place in np.ndindex(2, 2, 2, 3):
        assert (middle(*place, of=0) == 200).all()
        np.testing.assert_allclose(middle(*place, of=1), lit.get(place, 40), atol=12)
        expected = np.broadcast_to(255 * colours[place].numpy(), (2, 2, 3))
        np.testing.assert_allclose(middle(*place, of=2), expected, atol=20)
    assert torch.equal(still(inputs), inputs[:, :, 2]) and torch.equal(still(inputs[:, :, 0]), inputs[:, :, 0])


def test_patches_of_similar_features_have_similar_colours() -> None:
    """There are two groups of patches; neither the input nor a rotation of the features changes which are alike."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(2, (3, 4, 4), generator=generator).bool()
    features = 0.01 * torch.randn(3, 4, 4, 16, generator=generator)
    features[..., 0] += 5.0 * first
    colours = principal_colours(features)
    assert colours.shape == (3, 4, 4, 3) and colours.min() == 0 and colours.max() == 1
    red = colours[..., 0]
    apart = red[first].mean() - red[~first].mean()
    assert apart.abs() > 0.9
    turn, _ = torch.linalg.qr(torch.randn(16, 16, generator=generator))
    turned = principal_colours(features @ turn)[..., 0]
    assert min((turned - red).abs().max(), (1 - turned - red).abs().max()) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_the_clip_in_the_middle(
    family: tuple[str, dict[str, Any]], moving: dict[str, Path], tmp_path: Path
) -> None:
    """Frames 2, 4, 6, 8 of 11, 12 or 13, then one or two later, whatever else the batch has."""
    source = of_weights(exported(family, tmp_path), False, [f"data.shards={moving['train']}", *CLIPS])
    recipe, manifest = source.recipe, Manifest.load(moving["train"])
    view = View(source.identity(), 32, 1.0, "fp32", "mean", recipe.model.statistics, recipe.data.clip)
    places = compute(tmp_path / "features", source.encoder, [0, 1], view, manifest, recipe, join())
    got = [load(places[layer], 0, 1, CPU) for layer in (0, 1)]
    assert got[1].ids.tolist() == list(range(24))
    files = sorted((moving["train"].parent / "source" / "train").rglob("*.mp4"))
    known = {}
    for file in files:
        _, pixels = all_frames(file.read_bytes())
        first = (len(pixels) - 7) // 2
        clip = torch.from_numpy(pixels[first : first + 7 : 2]).permute(3, 0, 1, 2)
        with torch.no_grad():
            inputs = normalise(clip[None], torch.float32, recipe.model.statistics)
            known[f"{file.parent.name}/{file.name}"] = source.encoder.pooled_blocks(inputs, [0, 1], "mean")
    for layer in (0, 1):
        for sample, row in enumerate(got[layer].values):
            torch.testing.assert_close(row, known[manifest.path(sample)][layer][0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_exports_tell_what_they_are(family: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    """Name, options, size and frames of what `scripts/export.py` writes of a model of clips."""
    for frames in (FRAMES, 1):
        source = of_weights(exported(family, tmp_path, frames, 64), False, ["data.shards=unused"])
        data, model = source.recipe.data, source.recipe.model
        assert (data.frames, data.image_size, model.name, dict(model.options)) == (frames, 64, *family)
        given = encoder(family, frames, 64).network.state_dict()
        for name, value in source.encoder.network.state_dict().items():
            assert torch.equal(value, given[name]), name
        assert model.statistics == NORMALISATION
        untrained = of_weights(str(tmp_path), True, ["data.shards=unused"])
        assert untrained.identity() != source.identity()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_of_clips_is_judged_and_drawn(
    family: tuple[str, dict[str, Any]], moving: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, model = tmp_path / "run", [f"model.name={family[0]}", f"model.options={json.dumps(family[1])}"]
    model.append("model.position_init=random")
    pretrain(moving["train"], run, *CLIPS, *model, "optim.batch_size=8", "run.max_steps=1")
    settings = Settings([1, 3], 0.07, [0.01, 0.1], 20, 8, 0.2, seed=0)
    asked = Asked(str(run), [f"data.validation={moving['validation']}"], None, False, [0, -1], "mean", 1.0, None)
    probe(asked, settings, join())
    out = run / "probe"
    report = json.loads((out / "step-00000001.json").read_text())
    view = of_run(run, chosen(run, None), []).encoder
    assert list(report["layers"]) == ["0", str(view.depth - 1)]
    for judged in report["layers"].values():
        images = judged["images"]
        assert images["trained"] + images["held_out"] == 24 and images["validated"] == 8 and images["bad"] == 0
    assert report["view"]["clip"] == {"frames": FRAMES, "sampling": "stride", "stride": 2.0, "fps": None}
    keys = [view.prefix + layout.cells for layout in view.key_layouts]
    assert all(1 < tokens <= most + 1e-3 for tokens, most in zip(report["attended_tokens"], keys, strict=True))
    said = capsys.readouterr().out
    assert "8 validation clips" in said and "block 0" in said
    with Image.open(out / "step-00000001-attention.png") as picture:
        assert picture.size == (2 * (32 + 4) - 4, 8 * 3 * (32 + 14 + 4))
    with Image.open(out / "step-00000001-neighbours.png") as picture:
        assert picture.size == (4 * (32 + 4) - 4, 8 * (32 + 14 + 4))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_of_clips_is_probed_while_it_trains(
    family: tuple[str, dict[str, Any]], moving: dict[str, Path], tmp_path: Path
) -> None:
    """With the numbers of `scripts/probe.py`."""
    model = [f"model.name={family[0]}", f"model.options={json.dumps(family[1])}", "model.position_init=random"]
    data = f"data.validation={moving['validation']}"
    settings = [*CLIPS, *model, data, "optim.batch_size=8", "run.max_steps=1", "run.probe_every=1"]
    pretrain(moving["train"], tmp_path / "run", *settings)
    (found,) = metrics(tmp_path / "run")
    asked = Asked(str(tmp_path / "run"), [data], None, False, [-1], "mean", CENTRE, None)
    probe(asked, Settings(), join())
    report = json.loads((tmp_path / "run" / "probe" / "step-00000001.json").read_text())
    (layer,) = report["layers"].values()
    assert found["probe_linear"] == layer["linear"]["top1"] and found["probe_knn"] == layer["neighbours"][0]["top1"]
    assert found["attended_tokens"] == pytest.approx(report["attended_tokens"][-1], rel=1e-5)
    assert 1 <= found["effective_rank"] <= 8  # validation clips
