"""Load the frozen network of a target: its timm name or folder, its weights, and its identity."""

from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model.weights import Weights, WeightsError, read
from pipeline.targets.target import TargetError


class TeacherError(TargetError):
    """A teacher cannot be used; the message is one line that names it and the remedy."""


def teacher_width(teacher: str) -> int:
    """Return the width of a teacher's tokens, without reading weights.

    Args:
        teacher: see `load_teacher`.

    Raises:
        TeacherError: the model is unknown.
    """
    return cast(int, build_teacher(teacher, device="meta").num_features)


def classes_of(teacher: str, weights: Path | None) -> int:
    """Return how many classes a teacher's classifier has: those of the weights, if given.

    Raises:
        TeacherError: the model is unknown, or does not have a classifier.
    """
    network = build_teacher(teacher, device="meta")
    number = _classes_in(_given(weights), network) or network.num_classes
    if not number:
        raise TeacherError(f"target.teacher={teacher[:100]!r} does not have a classifier: choose a model that has one")
    return int(number)


def forward_macs(teacher: str, size: tuple[int, int], grid: tuple[int, int]) -> int:
    """Count the multiply-adds of a classifier that labels an image, as torch counts them.

    Args:
        teacher: see `load_teacher`.
        size: height and width of the image in pixels.
        grid: rows and columns of patches, for each of which a plain transformer has a token.

    Raises:
        TeacherError: the model is unknown, or does not take such images.
    """
    network = build_teacher(teacher, device="meta").eval()
    try:
        size = fit(network, size, grid)
        with FlopCounterMode(display=False) as counter:
            network.forward_features(torch.zeros(1, 3, *size, device="meta"))
    except (AttributeError, TypeError, ValueError, RuntimeError, AssertionError, IndexError) as error:
        raise TeacherError(
            f"target.teacher={teacher[:100]!r} lacks a class map: choose another timm classifier ({one_line(error)})"
        ) from error
    return int(counter.get_total_flops() // 2)


def fit(classifier: Any, size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """Adapt a classifier to images of `size`, or of one token per patch of `grid`; return its input size."""
    if hasattr(classifier, "num_prefix_tokens"):
        high, wide = classifier.patch_embed.patch_size
        size = grid[0] * high, grid[1] * wide
    if hasattr(classifier, "set_input_size"):
        classifier.set_input_size(img_size=size)
    return size


def load_teacher(teacher: str, weights: Path | None, *, classifier: bool = False) -> nn.Module:
    """Load a timm model with trained weights, for evaluation.

    Args:
        teacher: a timm name, such as `vit_base_patch16_224.dino`, or a folder in timm's Hugging Face layout, such as
            one of `maskfeat export`.
        weights: a file with weights for that name; None: the folder's weights, or those that timm downloads.
        classifier: keep the classifier, with as many classes as the weights have.

    Returns:
        The model, with `pretrained_cfg["mean"]` and `["std"]` of its inputs.

    Raises:
        TeacherError: it or its weights are missing, damaged or do not match.
    """
    given = _given(weights)
    if given and Path(teacher).is_dir():
        raise TeacherError(f"{teacher} has weights of its own: leave out target.teacher_weights, or name a model")
    options: dict[str, Any] = {}
    if given:
        options["pretrained_cfg_overlay"] = {"state_dict": given.tensors}
        # As many classes as in the weights, since timm compares keys strictly only then
        if classes := _classes_in(given, build_teacher(teacher, device="meta")):
            options["num_classes"] = classes
            options["pretrained_cfg_overlay"]["num_classes"] = classes
    model = build_teacher(teacher, pretrained=True, **options)
    if not classifier:
        model.reset_classifier(0)
    elif not model.num_classes:
        raise TeacherError(f"target.teacher={teacher[:100]!r} does not have a classifier: choose a model that has one")
    own = given.normalisation if given else None
    mean, std = (own.mean, own.std) if own else (model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    model.pretrained_cfg = {"mean": tuple(mean), "std": tuple(std)}
    return cast(nn.Module, model.eval().requires_grad_(False))


def build_teacher(teacher: str, **options: Any) -> Any:
    """Call `timm.create_model` for a name or a folder. Raises TeacherError for every failure."""
    named = f"target.teacher={teacher[:100]!r}"
    try:
        folder = Path(teacher).is_dir()
    except OSError as error:
        raise TeacherError(f"{named} cannot be read: {error.strerror}") from error
    if folder and not (Path(teacher) / "config.json").is_file():
        raise TeacherError(f"{named} has no config.json: give a folder that `maskfeat export` or timm wrote")
    if not folder and not timm.is_model(teacher.partition(".")[0]):
        raise TeacherError(f"{named} is neither a folder nor a model of timm's")
    try:
        return timm.create_model(f"local-dir:{teacher}" if folder else teacher, **options)
    except Exception as error:  # errors of timm, the Hugging Face hub, safetensors or torch
        remedy = "" if folder else " (without a network, give its weights as target.teacher_weights)"
        raise TeacherError(f"{named} cannot be loaded{remedy}: {one_line(error)}") from error


def _given(weights: Path | None) -> Weights | None:
    try:
        return None if weights is None else read(weights)
    except WeightsError as error:
        raise TeacherError(f"target.teacher_weights: {error}") from error


def _classes_in(given: Weights | None, network: Any) -> int | None:
    """Return the outputs of `network`'s classifier in given weights; None where they do not have such a tensor."""
    names = network.pretrained_cfg.get("classifier") or ()
    for name in (names,) if isinstance(names, str) else names:
        if given and (weight := given.tensors.get(f"{name}.weight")) is not None:
            return len(weight)
    return None


def digest(teacher: nn.Module) -> str:
    """Return the SHA-256 of all weights with their names, as loaded."""
    digest = sha256()
    for name, tensor in sorted(teacher.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def one_line(error: Exception) -> str:
    """Return the beginning of an error's message as one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]} ..."
