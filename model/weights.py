"""Read the weights of other projects as tensors under the names of their code bases."""

import json
import re
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.names import MMPRETRAIN as MMPRETRAIN
from model.names import MMPRETRAIN_VIDEO as MMPRETRAIN_VIDEO
from model.names import OURS as OURS
from model.names import SLOWFAST as SLOWFAST
from model.names import TIMM as TIMM
from model.names import Layout as Layout
from model.size import ImageSize
from model.weights_file import WeightsError as WeightsError
from model.weights_file import load
from model.weights_file import weights_file as weights_file

_ENTRIES = ("model_state", "state_dict", "model", "module")  # entries of checkpoints that hold the weights
_WRAPPERS = re.compile(r"((module|_orig_mod)\.)+")  # prefixes of DistributedDataParallel and torch.compile
_REPEATED = 2**26  # bytes that an expanded tensor may claim, whatever the size of the file


@dataclass(frozen=True)
class Normalisation:
    """The mean and deviation of each channel that normalise images with values in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Normalisation(
    (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
)  # of all published MaskFeat weights for images ...
KINETICS = Normalisation((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))  # ... and for clips


@dataclass(frozen=True, eq=False)
class Weights:
    """The contents of a weights file.

    Attributes:
        file: for messages.
        layout: the code base whose names the tensors have.
        tensors: by those names, on the CPU.
        normalisation: that of the training inputs, where the code base or the file's folder determines it.
        image_size: size of the training inputs, where the file's folder has it.
    """

    file: Path
    layout: Layout
    tensors: dict[str, Tensor]
    normalisation: Normalisation | None = None
    image_size: ImageSize | None = None

    def has(self, name: str) -> bool:
        """Return whether there is a tensor for our `name`."""
        return self.layout.key(name) in self.tensors

    @property
    def fine_tuned(self) -> bool:
        """Return whether the weights include a classifier."""
        return self.has("encoder.head.weight") or self.has("encoder.head.1.weight")

    @property
    def of_clips(self) -> bool:
        """Return whether the weights embed clips."""
        names = ("encoder.patch_embed.proj.weight", "encoder.conv_proj.weight")
        return any(self.has(name) and self.tensors[self.layout.key(name)].ndim == 5 for name in names)

    def get(self, name: str, dimensions: int) -> Tensor:
        """Return the tensor for our `name`.

        Raises:
            WeightsError: it is missing, or has another number of dimensions.
        """
        key = self.layout.key(name)
        if key not in self.tensors:
            raise WeightsError(f"{self.file} is not a vision transformer of {self.layout.code}: missing {key}")
        if self.tensors[key].ndim != dimensions or not self.tensors[key].numel():
            shape = tuple(self.tensors[key].shape)
            raise WeightsError(f"{self.file}: {key} is {shape} instead of {dimensions}-dimensional")
        return self.tensors[key]


def read(path: Path | str) -> Weights:
    """Read a checkpoint of SlowFast or mmpretrain, a whole model of ours, or a vision transformer under timm's names.

    Args:
        path: see `weights_file`; under timm's names, the weights may be in "model" (as MAE and BEiT publish them),
            "module" or "state_dict". Normalisation and image size are read from timm's config.json beside the file, or
            from the maskfeat.json of a whole model.

    Raises:
        WeightsError: the file is missing, it or its config.json is damaged, or it holds more than plain tensors.
    """
    file = weights_file(Path(path))
    tensors, entries = load(file), []
    for _ in range(3):  # a limit, since a checkpoint may contain itself
        if held := [entry for entry in _ENTRIES if isinstance(tensors, dict) and isinstance(tensors.get(entry), dict)]:
            tensors = tensors[held[0]]
            entries.append(held[0])
    if not (isinstance(tensors, dict) and tensors and all(map(_is_plain, tensors, tensors.values()))):
        raise WeightsError(
            f"{file} contains no weights: neither model_state, state_dict, model or module, nor plain tensors by name"
        )
    if _claimed(tensors) > file.stat().st_size:
        raise WeightsError(f"{file} is damaged: its tensors claim more bytes than it has")
    if all(map(_WRAPPERS.match, tensors)):
        tensors = {_WRAPPERS.sub("", key, count=1): tensor for key, tensor in tensors.items()}
    if "model_state" in entries:
        return _published(Weights(file, SLOWFAST, tensors))
    if "backbone.blocks.0.attn.qkv.weight" in tensors:
        return _published(Weights(file, MMPRETRAIN_VIDEO, tensors))
    if any(key.startswith("backbone.") for key in tensors):
        return _published(Weights(file, MMPRETRAIN, _as_in_mmpretrain(tensors)))
    plain = {key: tensor for key, tensor in tensors.items() if not key.endswith(".relative_position_index")}
    if any(key.startswith("encoder.") for key in plain):
        return _described(Weights(file, OURS, plain), file.with_suffix(".json"))
    return _described(Weights(file, TIMM, plain), file.parent / "config.json")


def _published(weights: Weights) -> Weights:
    """Set the normalisation of one of the published code bases' checkpoints."""
    return replace(weights, normalisation=KINETICS if weights.of_clips else IMAGENET)


def _is_plain(key: Any, value: Any) -> bool:
    """Return whether this is a named tensor of numbers in memory, unlike everything else that torch can load."""
    return (
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and not (value.is_nested or value.is_quantized)
    )


def _claimed(tensors: dict[str, Tensor]) -> int:
    """Return the least size in bytes of a sound file with these tensors, counting each shared storage once.

    A tensor that expands a few bytes beyond `_REPEATED` counts in full.
    """
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors.values()}
    repeated = max(tensor.nbytes for tensor in tensors.values())
    return max(sum(storage.nbytes() for storage in storages.values()), repeated if repeated > _REPEATED else 0)


def _described(weights: Weights, config: Path) -> Weights:
    """Set normalisation and image size from timm's config.json or a whole model's maskfeat.json, if it has them."""
    if not config.is_file():
        return weights
    try:
        stated = json.loads(config.read_text())
        stated = stated.get("pretrained_cfg", stated)  # timm's older files lack this section
        return replace(weights, normalisation=_normalisation(stated), image_size=_image_size(stated))
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise WeightsError(
            f"{config} does not say how images are normalised or how large they are ({error})"
        ) from error


def _normalisation(stated: dict[str, Any]) -> Normalisation | None:
    if "mean" not in stated or "std" not in stated:
        return None
    (red, green, blue), std = (tuple(map(float, stated[key])) for key in ("mean", "std"))
    if not (len(std) == 3 and min(std) > 0 and all(map(isfinite, (red, green, blue, *std)))):
        raise ValueError(f"mean {stated['mean']}, std {stated['std']}")
    return Normalisation((red, green, blue), std)


def _image_size(stated: dict[str, Any]) -> ImageSize | None:
    sides = stated.get("settings", {}).get("data.image_size")  # of a whole model
    if sides is None:
        sides = stated.get("input_size")  # of timm: channels, for clips frames, height and width
    sides = sides[-2:] if isinstance(sides, list) else [sides, sides]
    return ImageSize(*sides) if len(sides) == 2 and all(type(side) is int and side > 0 for side in sides) else None


def _as_in_mmpretrain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of any version of mmselfsup to mmpretrain's names."""
    head = "neck.fc." if "backbone.mask_token" in tensors else "head.fc."
    today = {"head.head.": head, "head.predictor.fc.": head, "backbone.fc_norm.": "backbone.ln2."}
    before = re.compile("|".join(map(re.escape, today)))
    return {before.sub(lambda found: today[found[0]], key): tensor for key, tensor in tensors.items()}
