"""Weights of others: tensors by the names of their codes."""

import json
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.names import MMPRETRAIN as MMPRETRAIN
from model.names import MMPRETRAIN_VIDEO as MMPRETRAIN_VIDEO
from model.names import SLOWFAST as SLOWFAST
from model.names import TIMM as TIMM
from model.names import Layout as Layout
from model.weights_file import WeightsError as WeightsError
from model.weights_file import load
from model.weights_file import weights_file as weights_file

_ENTRIES = ("model_state", "state_dict", "model", "module")  # of checkpoints, under which their weights are
_WRAPPERS = re.compile(r"((module|_orig_mod)\.)+")  # that DistributedDataParallel and torch.compile put before all keys
_REPEATED = 2**26  # bytes of a tensor that may repeat a few, whatever the size of the file


@dataclass(frozen=True)
class Normalisation:
    """What is subtracted from the channels of images, of values in [0, 1], and what they are divided by then."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Normalisation(
    (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
)  # of all published MaskFeat weights of images ...
KINETICS = Normalisation((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))  # ... and of clips


@dataclass(frozen=True, eq=False)
class Weights:
    """What a weights file holds.

    Attributes:
        file: for messages.
        layout: whose names the tensors have.
        tensors: by those names, on the CPU.
        normalisation: of the inputs that the weights were trained on, where the code or the file's folder tells it.
    """

    file: Path
    layout: Layout
    tensors: dict[str, Tensor]
    normalisation: Normalisation | None = None

    def has(self, name: str) -> bool:
        """Whether there is a tensor that we would call `name`."""
        return self.layout.key(name) in self.tensors

    @property
    def fine_tuned(self) -> bool:
        """Whether there is a classifier."""
        return self.has("encoder.head.weight") or self.has("encoder.head.1.weight")

    @property
    def of_clips(self) -> bool:
        """Tell whether they embed clips."""
        names = ("encoder.patch_embed.proj.weight", "encoder.conv_proj.weight")
        return any(self.has(name) and self.tensors[self.layout.key(name)].ndim == 5 for name in names)

    def get(self, name: str, dimensions: int) -> Tensor:
        """The tensor that we call `name`.

        Raises:
            WeightsError: it is missing, or not of so many dimensions.
        """
        key = self.layout.key(name)
        if key not in self.tensors:
            raise WeightsError(f"{self.file} is not a vision transformer of {self.layout.code}: missing {key}")
        if self.tensors[key].ndim != dimensions or not self.tensors[key].numel():
            shape = tuple(self.tensors[key].shape)
            raise WeightsError(f"{self.file}: {key} is {shape} instead of {dimensions}-dimensional")
        return self.tensors[key]


def read(path: Path | str) -> Weights:
    """A checkpoint of SlowFast or mmpretrain, or the weights of a vision transformer in timm's own names.

    Args:
        path: see `weights_file`; in timm's names also under "model" (as MAE's and BEiT's are published), "module" or
            "state_dict". A config.json of timm's beside the file tells the normalisation.

    Raises:
        WeightsError: there is no such file, it or its config.json is damaged, or it holds more than plain tensors.
    """
    file = weights_file(Path(path))
    tensors, entries = load(file), []
    for _ in range(3):  # a checkpoint that holds itself has no end
        if held := [entry for entry in _ENTRIES if isinstance(tensors, dict) and isinstance(tensors.get(entry), dict)]:
            tensors = tensors[held[0]]
            entries.append(held[0])
    if not (isinstance(tensors, dict) and tensors and all(map(_is_plain, tensors, tensors.values()))):
        raise WeightsError(
            f"{file} holds no weights: neither model_state, state_dict, model or module, nor plain tensors by name"
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
    return Weights(file, TIMM, plain, _normalisation(file.parent / "config.json"))


def _published(weights: Weights) -> Weights:
    """Tell the normalisation of one of the published codes' checkpoints."""
    return replace(weights, normalisation=KINETICS if weights.of_clips else IMAGENET)


def _is_plain(key: Any, value: Any) -> bool:
    """Tell a named tensor of numbers in memory from everything else that torch can load."""
    return (
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and not (value.is_nested or value.is_quantized)
    )


def _claimed(tensors: dict[str, Tensor]) -> int:
    """Bytes that a file has at least if it is sound: of each storage once, though tensors may share one or repeat it.

    A tensor that repeats some bytes beyond all measure counts as large as it says it is.
    """
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors.values()}
    repeated = max(tensor.nbytes for tensor in tensors.values())
    return max(sum(storage.nbytes() for storage in storages.values()), repeated if repeated > _REPEATED else 0)


def _normalisation(config: Path) -> Normalisation | None:
    """What timm's config.json says, if it is there and speaks of it."""
    if not config.is_file():
        return None
    try:
        stated = json.loads(config.read_text())
        stated = stated.get("pretrained_cfg", stated)  # timm's older files have no such part
        if "mean" not in stated or "std" not in stated:
            return None
        (red, green, blue), std = (tuple(map(float, stated[key])) for key in ("mean", "std"))
        if not (len(std) == 3 and min(std) > 0 and all(map(isfinite, (red, green, blue, *std)))):
            raise ValueError(f"mean {stated['mean']}, std {stated['std']}")
        return Normalisation((red, green, blue), std)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{config} is not a timm configuration ({error})") from error


def _as_in_mmpretrain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of any mmselfsup under the names that they have had since mmpretrain."""
    head = "neck.fc." if "backbone.mask_token" in tensors else "head.fc."
    today = {"head.head.": head, "head.predictor.fc.": head, "backbone.fc_norm.": "backbone.ln2."}
    before = re.compile("|".join(map(re.escape, today)))
    return {before.sub(lambda found: today[found[0]], key): tensor for key, tensor in tensors.items()}


def share(file: Path) -> None:
    """Let whoever may read its folder read a safetensors file, which safetensors leaves to its owner alone."""
    with suppress(PermissionError):  # a file system without such modes
        file.chmod(file.stat().st_mode | file.parent.stat().st_mode & 0o444)
