"""Probes: linear against scikit-learn, neighbours against NumPy, features against timm, any ranks against one."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labelled import CLASSES, labelled_shards
from launching import free_port, pretrain
from ranks import Ranks
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from model.encoders.registry import encoder_of
from model.export import export_timm
from model.maskfeat import build_encoder
from pipeline.checkpoints.checkpoint import read
from pipeline.cluster.world import World, join
from pipeline.data.augment import centre_crops
from pipeline.data.labels import held_out, labels_of
from pipeline.metrics import hits
from pipeline.pixels import IMAGENET, normalise
from pipeline.probe.attention import attended_tokens, attention_weights, looked_at
from pipeline.probe.features import View, check_encoder, compute, encode, load
from pipeline.probe.linear import fit
from pipeline.probe.neighbours import nearest, votes
from pipeline.probe.probe import default_folder
from pipeline.probe.source import of_run, of_weights
from pipeline.settings import ConfigError
from shards.manifest import Manifest

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Images in two colours and much noise: 3 x 30 to train on, and 2 x 8, of which green comes first, to validate."""
    parts = {"train": dict.fromkeys(CLASSES, 30), "validation": {"green": 8, "red": 8}}
    return labelled_shards(tmp_path_factory.mktemp("labelled"), parts)


@pytest.fixture(scope="module")
def run(labelled: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    pretrain(labelled["train"], run, "run.max_steps=2")
    return run


@pytest.fixture
def world() -> World:
    return join()


def probe(ranks: int, source: Path, out: Path, *arguments: str, expect: int = 0) -> str:
    """Return the output of scripts/probe.py in this many processes."""
    command = [str(source), *arguments, "--out", str(out)]
    started = Ranks(ranks, command, out.parent / "said", free_port(), "scripts/probe.py")
    statuses = started.wait(240)
    assert statuses == [expect] * ranks, f"{statuses}: {started.said()[-3000:]}"
    return started.said()


def test_the_linear_probe_finds_the_optimum_of_logistic_regression(world: World) -> None:
    """Classes that overlap, so that there is an optimum; in whole batches and in small ones, whatever else is swept."""
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    features = (rng.normal(size=(300, 5)) + np.eye(5)[labels] * 1.5) * [1, 5, 0.1, 2, 1] + 7
    standard = (features - features.mean(0)) / features.std(0)
    want = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(standard, labels).predict_proba(standard)

    given = (torch.tensor(features, dtype=torch.float32), torch.tensor(labels), torch.arange(300))
    settings = {"classes": 3, "seed": 0, "world": world}
    whole = fit(*given, rates=[0.3, 1e-5], epochs=300, batch_size=300, **settings)
    small = fit(*given, rates=[0.05], epochs=100, batch_size=64, **settings)
    for sweep, tolerance in ((whole, 1e-3), (small, 0.02)):
        got = (sweep.inputs(given[0]) @ sweep.weight[:, 0]).softmax(1)
        np.testing.assert_allclose(got, want, atol=tolerance)
    assert whole.hits(*given[:2])[0, 0] == (want.argmax(1) == labels).sum()
    assert whole.weight[:, 1].abs().max() < 0.01  # too small a rate learns nothing beside one that does


def test_a_separable_set_is_separated(world: World) -> None:
    rng = np.random.default_rng(1)
    labels = torch.arange(200) % 4
    features = torch.tensor(np.eye(6)[labels] * 4 + rng.uniform(-1, 1, (200, 6)), dtype=torch.float32)
    train, new = slice(0, 120), slice(120, 200)
    sweep = fit(
        features[train], labels[train], torch.arange(120), [0.1], 4, epochs=100, batch_size=50, seed=3, world=world
    )
    theirs = LogisticRegression().fit(features[train], labels[train])
    assert sweep.hits(features[train], labels[train])[:, 0].tolist() == [120, 120]
    assert sweep.hits(features[new], labels[new])[0, 0] == theirs.score(features[new], labels[new]) * 80 == 80


def test_neighbours_equal_brute_force(world: World) -> None:
    rng = np.random.default_rng(0)
    queries, bank = rng.normal(size=(37, 8)), rng.normal(size=(211, 8))
    ids, labels = np.arange(211) * 3 + 5, rng.integers(0, 4, 700)
    cosines = (queries @ bank.T) / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(bank, axis=1)
    order = np.argsort(-cosines, axis=1)[:, :9]
    want = np.zeros((37, 4))
    for query, places in enumerate(order):
        for place in places:
            want[query, labels[ids[place]]] += np.exp(cosines[query, place] / 0.07)

    near, found = nearest(torch.tensor(queries).float(), torch.tensor(bank).float(), torch.tensor(ids), 9, world)
    np.testing.assert_array_equal(found, ids[order])
    np.testing.assert_allclose(near, np.take_along_axis(cosines, order, 1), atol=1e-6)
    want /= np.exp(cosines.max(1, keepdims=True) / 0.07)
    np.testing.assert_allclose(votes(near, torch.tensor(labels)[found], 4, 0.07), want, rtol=1e-4)


def test_votes_are_finite_at_any_temperature() -> None:
    cosines, labels = torch.tensor([[0.99, 0.98, 0.5], [0.1, 0.0, -0.2]]), torch.tensor([[1, 0, 0], [2, 0, 0]])
    assert votes(cosines, labels, 3, 1e-3).argmax(1).tolist() == [1, 2]
    assert votes(cosines, labels, 3, 1e-3).isfinite().all()


def test_hits_count_no_tie_and_nothing_that_is_not_finite() -> None:
    scores = torch.tensor([[3.0, 2, 1, 0, -1, -2], [1, 1, 0, 0, 0, 0], [torch.nan] * 6, [0, 9, 8, 7, 6, 5]])
    assert hits(scores, torch.tensor([0, 0, 0, 0])).tolist() == [1, 2]
    assert hits(scores[:, None].expand(-1, 2, -1), torch.tensor([1, 1, 1, 1])).tolist() == [[1, 1], [3, 3]]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224"])
def test_layers_are_those_of_timm(name: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name, 32, embed_dim=32, depth=4, num_heads=2).eval()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        pixels = normalise(images, torch.float32)
        last = encoder.forward_features(pixels)
        outputs = []
        hooks = [block.register_forward_hook(lambda _, __, out: outputs.append(out)) for block in encoder.blocks]
        encoder.forward_features(pixels)
        for hook in hooks:
            hook.remove()
        want = [encoder.norm(outputs[layer]) for layer in (1, 3)]
    torch.testing.assert_close(want[1], last)
    for pool, pooled in (("mean", lambda x: x[:, 1:].mean(1)), ("class", lambda x: x[:, 0])):
        got = encode(encoder_of(encoder), images, [1, 3], pool, torch.float32)
        torch.testing.assert_close(got, [pooled(tokens) for tokens in want])
    if name.startswith("vit"):
        theirs = encoder.get_intermediate_layers(pixels, n=[1, 3], norm=True)
        torch.testing.assert_close(
            encode(encoder_of(encoder), images, [1, 3], "mean", torch.float32), [x.mean(1) for x in theirs]
        )


@pytest.mark.parametrize(
    ("name", "options", "attentions"),
    [
        ("vit_tiny_patch16_224", {"class_token": False}, 1),
        ("vit_tiny_patch16_224", {"class_token": False, "reg_tokens": 2}, 1),
        ("vit_tiny_patch16_224", {"reg_tokens": 2}, 1),
        ("vit_base_patch16_siglip_224", {}, 1),
        ("vit_medium_patch16_gap_240", {}, 1),
        ("vit_base_patch16_dinov3", {}, 1),
        ("vit_base_patch16_xp_224", {}, 1),  # attention beside the MLP
        ("vit_small_patch16_18x2_224", {}, 2),  # two attentions beside each other
        ("vit_dpwee_patch16_reg1_gap_256", {}, 2),  # the difference of two attentions
    ],
)
def test_encoders_with_other_tokens_and_blocks_are_probed(name: str, options: dict[str, Any], attentions: int) -> None:
    torch.manual_seed(0)
    encoder = encoder_of(build_encoder(name, 32, embed_dim=48, depth=2, num_heads=3, **options).eval())
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        tokens = encoder.network.forward_features(normalise(images, torch.float32))
    check_encoder(encoder)
    (pooled,) = encode(encoder, images, [1], "mean", torch.float32)
    torch.testing.assert_close(pooled, tokens[:, encoder.prefix :].mean(1))
    for weights in attention_weights(encoder, images):
        assert weights.shape == (2, 3 * attentions, *[encoder.prefix + 4] * 2)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    if encoder.network.cls_token is None:
        with pytest.raises(ConfigError, match="does not have a class token"):
            check_encoder(encoder, "class")
    else:
        check_encoder(encoder, "class")
        torch.testing.assert_close(encode(encoder, images, [1], "class", torch.float32), [tokens[:, 0]])


def test_attention_is_what_queries_and_keys_make_it() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny_patch16_224", 48, embed_dim=32, depth=2, num_heads=2).eval()
    images = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    for block in encoder.blocks:  # not all tokens alike, as fresh weights have it
        block.attn.qkv.weight.data *= 20
    outputs: list[torch.Tensor] = []
    for block in encoder.blocks:
        block.attn.qkv.register_forward_hook(lambda _, __, out: outputs.append(out))
    fused = [block.attn.fused_attn for block in encoder.blocks]
    got = attention_weights(encoder_of(encoder), images)
    assert [block.attn.fused_attn for block in encoder.blocks] == fused
    for output, weights in zip(outputs, got, strict=True):
        q, k, _ = output.view(2, 10, 3, 2, 16).permute(2, 0, 3, 1, 4).detach().numpy()
        scores = np.exp(q @ k.transpose(0, 1, 3, 2) / 4)
        want = scores / scores.sum(-1, keepdims=True)
        np.testing.assert_allclose(weights, want, atol=1e-6)
        entropy = -(want * np.log(want)).sum(-1).mean()
        assert 1.5 < attended_tokens(weights) < 9.5 and abs(np.log(attended_tokens(weights)) - entropy) < 1e-5
    heads = want.mean(1)  # of the last block
    for pool, looked in (("class", heads[:, 0, 1:]), ("mean", heads[:, 1:, 1:].mean(1))):
        np.testing.assert_allclose(looked_at(got[-1], encoder_of(encoder), pool), looked.reshape(2, 3, 3), atol=1e-6)


def test_attended_tokens_are_one_of_a_collapsed_block_and_all_of_a_uniform_one() -> None:
    assert attended_tokens(torch.full((2, 3, 10, 10), 0.1)) == pytest.approx(10)
    assert attended_tokens(torch.eye(10).expand(2, 3, 10, 10)) == 1


def test_the_crop_is_the_centre_of_the_resized_image() -> None:
    """224 of 256 pixels of the short side: as resize and centre crop, but on the original."""
    got = centre_crops(np.array([256, 512], np.int32), np.array([400, 300], np.int32), share=224 / 256)
    assert got.tolist() == [[16, 88, 224, 224], [125, 19, 262, 262]]


def test_labels_are_matched_by_the_names_of_their_classes(labelled: dict[str, Path]) -> None:
    training, validation = (Manifest.load(shards) for shards in labelled.values())
    labels, wanted = labels_of(training, validation)
    assert validation.classes == ["green", "red"] and set(wanted) == {1, 2}
    assert [training.classes[label] for label in wanted] == [validation.classes[label] for label in validation.label]
    np.testing.assert_array_equal(labels, training.label)


def test_what_is_held_out_depends_on_the_id_only() -> None:
    ids = np.arange(20_000)
    out = held_out(ids, 0.1)
    assert abs(out.mean() - 0.1) < 0.01
    np.testing.assert_array_equal(held_out(ids[7_000:7_100], 0.1), out[7_000:7_100])


def test_features_are_computed_once_and_torn_ones_again(
    run: Path, labelled: dict[str, Path], tmp_path: Path, world: World
) -> None:
    source = of_run(run, None, [])
    manifest = Manifest.load(labelled["train"])
    view = View(source.identity(), 32, 0.875, "fp32", "mean")
    calls: list[int] = []
    source.encoder.network.register_forward_pre_hook(lambda *_: calls.append(1))
    source.encoder.network.norm.register_forward_hook(lambda *_: calls.append(1))

    def places() -> dict[int, Path]:
        calls.clear()
        return compute(tmp_path, source.encoder, [0, 1], view, manifest, source.recipe, world)

    first = places()
    assert calls and places() == first and not calls
    whole = load(first[1], 0, 1, CPU)
    assert whole.ids.tolist() == list(range(90))
    parts = [load(first[1], part, 4, CPU) for part in range(4)]
    assert torch.equal(torch.cat([part.values for part in parts]), whole.values)
    assert torch.equal(torch.cat([part.ids for part in parts]), whole.ids)

    part = first[1] / "part-00000.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    assert places() == first and calls
    assert torch.equal(load(first[1], 0, 1, CPU).values, whole.values)
    (first[0] / "identity.json").unlink()
    assert places() == first and calls


def test_exported_weights_are_those_of_the_run(run: Path, tmp_path: Path) -> None:
    trained = of_run(run, read(run / "checkpoints" / "step-00000002"), [])
    untrained = of_run(run, None, [])
    assert trained.identity() != untrained.identity()
    for source in (trained, untrained):
        model = source.recipe.model
        export_timm(
            source.encoder.network, tmp_path, image_size=32, options=model.options, mean=IMAGENET.mean, std=IMAGENET.std
        )
        again = of_weights(str(tmp_path), False, ["data.shards=unused"])
        assert again.identity() == source.identity() and again.recipe.data.image_size == 32
        assert not [note for note in again.notes if "start anew" in note]  # parts that no probe uses
    larger = of_weights(str(tmp_path), False, ["data.shards=unused", "data.image_size=64"])
    assert larger.encoder.network.patch_embed.grid_size == (4, 4) and "pos_embed resampled to 4x4" in larger.notes[-1]


def test_two_ranks_judge_as_one(run: Path, labelled: dict[str, Path], tmp_path: Path) -> None:
    settings = [f"data.validation={labelled['validation']}", "--layer", "0", "-1", "--k", "1", "20"]
    settings += ["--epochs", "20", "--batch-size", "32", "--rates", "0.01", "0.1"]
    reports = []
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}"
        said = probe(ranks, run, out, *settings, *(["--json"] if ranks == 2 else []))
        assert ("block 0" in said and "block 1" in said) == (ranks == 1)  # tables, or what is written
        assert {path.name for path in out.glob("*.png")} == {
            "step-00000002-attention.png",
            "step-00000002-neighbours.png",
        }
        written = (out / "step-00000002.json").read_text()
        assert (written in said) == (ranks == 2)
        reports.append(json.loads(written))
    one, two = reports
    assert one["layers"] == two["layers"] and list(one["layers"]) == ["0", "1"]
    images = one["layers"]["1"]["images"]
    assert images["trained"] + images["held_out"] == 90 and images["validated"] == 16 and images["bad"] == 0
    assert one["layers"]["1"]["linear"]["top1"] > 0.9  # colours are told apart
    attended = one["attended_tokens"]
    assert len(attended) == 2 and two["attended_tokens"] == pytest.approx(attended, rel=1e-5)
    assert all(1 < tokens < 5.001 for tokens in attended)  # of four patches and the class token
    for place in (tmp_path / "1" / "features").iterdir():
        whole = load(place, 0, 1, CPU)
        parts = [load_file(path) for path in sorted((tmp_path / "2" / "features" / place.name).glob("part-*"))]
        assert len(parts) == 2
        assert torch.equal(torch.cat([part["ids"] for part in parts]), whole.ids)
        torch.testing.assert_close(torch.cat([part["features"] for part in parts]), whole.values, atol=1e-5, rtol=0)


def test_a_run_needs_no_teacher_to_be_probed(run: Path, tmp_path: Path) -> None:
    """The teacher may have been removed since the training."""
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    config = (moved / "config.yaml").read_text()
    changed = config.replace("kind: hog", "kind: features").replace("teacher: null", "teacher: gone/teacher")
    (moved / "config.yaml").write_text(changed)
    found = read(run / "checkpoints" / "step-00000002")
    assert of_run(moved, found, []).identity() == of_run(run, found, []).identity()


def test_results_of_models_that_are_named_alike_lie_apart() -> None:
    folders = {default_folder(name) for name in ("vit_base_patch16_224.dino", "vit_base_patch16_224.mae", "/w/v1.5")}
    assert {folder.name for folder in folders} == {
        "probe-vit_base_patch16_224.dino",
        "probe-vit_base_patch16_224.mae",
        "probe-v1.5",
    }


def test_what_cannot_be_probed_is_one_error(run: Path, shards: Path, labelled: dict[str, Path], tmp_path: Path) -> None:
    for arguments, message in (
        ([f"data.shards={shards}", f"data.validation={shards}"], f"{shards}: 90 of 90 samples have no label"),
        ([], "set data.validation"),
        ([f"data.validation={labelled['validation']}", "--layer", "2"], "--layer 2: vit_tiny_patch16_224 has blocks 0"),
    ):
        said = probe(1, run, tmp_path / "out", *arguments, expect=2)
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and message in errors[0], said
    assert not (tmp_path / "out").exists()
