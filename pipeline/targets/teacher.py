"""A frozen network that a target is taken from: timm's name or folder, its weights, and what they are known by."""

from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import nn

from model.weights import Weights, WeightsError, read
from pipeline.targets.target import TargetError


class TeacherError(TargetError):
    """A teacher cannot be used; the message is one line that names it and the remedy."""


def teacher_width(teacher: str) -> int:
    """Return the width of a teacher's tokens; read no weights.

    Args:
        teacher: see `load_teacher`.

    Raises:
        TeacherError: there is no such model.
    """
    return cast(int, build_teacher(teacher, device="meta").num_features)


def load_teacher(teacher: str, weights: Path | None) -> nn.Module:
    """Load a timm model with trained weights, for evaluation.

    Args:
        teacher: a name of timm's, as `vit_base_patch16_224.dino`, or a folder in timm's Hugging Face layout, as
            `scripts/export.py` writes it.
        weights: a file with the weights of that name; None: those of the folder, or those that timm downloads.

    Returns:
        with `pretrained_cfg["mean"]` and `["std"]` of the images it takes.

    Raises:
        TeacherError: it or its weights are not there, are damaged or do not fit each other.
    """
    given: Weights | None = None
    try:
        given = None if weights is None else read(weights)
    except WeightsError as error:
        raise TeacherError(f"target.teacher_weights: {error}") from error
    if given and Path(teacher).is_dir():
        raise TeacherError(f"{teacher} has weights of its own: leave out target.teacher_weights, or name a model")
    # Classes as the weights have them, since timm compares keys strictly only then
    model = build_teacher(
        teacher, pretrained=True, pretrained_cfg_overlay={"state_dict": given.tensors} if given else None
    )
    model.reset_classifier(0)
    own = given.normalisation if given else None
    mean, std = (own.mean, own.std) if own else (model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    model.pretrained_cfg = {"mean": tuple(mean), "std": tuple(std)}
    return cast(nn.Module, model.eval().requires_grad_(False))


def build_teacher(teacher: str, **options: Any) -> Any:
    """`timm.create_model` of a name or a folder, whose every failure is a TeacherError."""
    named = f"target.teacher={teacher[:100]!r}"
    try:
        folder = Path(teacher).is_dir()
    except OSError as error:
        raise TeacherError(f"{named} cannot be read: {error.strerror}") from error
    if folder and not (Path(teacher) / "config.json").is_file():
        raise TeacherError(f"{named} has no config.json: give a folder that scripts/export.py or timm wrote")
    if not folder and not timm.is_model(teacher.partition(".")[0]):
        raise TeacherError(f"{named} is neither a folder nor a model of timm's")
    try:
        return timm.create_model(f"local-dir:{teacher}" if folder else teacher, **options)
    except (
        Exception
    ) as error:  # of timm, the Hugging Face hub, safetensors or torch, whatever is wrong with the weights
        remedy = "" if folder else " (without a network, give its weights as target.teacher_weights)"
        raise TeacherError(f"{named} cannot be loaded{remedy}: {one_line(error)}") from error


def digest(teacher: nn.Module) -> str:
    """SHA-256 of all weights with their names, as they were loaded."""
    digest = sha256()
    for name, tensor in sorted(teacher.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def one_line(error: Exception) -> str:
    """Return the beginning of an error's message as one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]} ..."
