"""Weights files of others: reading them, and what their codes call the parts of a MaskFeat.

Files are not trusted, so only tensors are unpickled. Names are those that the published codes write:
github.com/facebookresearch/SlowFast, open-mmlab/mmpretrain and, before it, open-mmlab/mmselfsup.
"""

import json
import re
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from torch import Tensor

# What stands beside the tensors in checkpoints of mmengine (logs, which mmselfsup's were published with), MAE and timm
_NOTHING = (
    "argparse.Namespace",
    "builtins.getattr",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
)


class _Nothing:
    """Takes the place of anything that is not a tensor when it is unpickled: it keeps nothing and does nothing."""

    def __new__(cls, *_: Any) -> Self:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


class WeightsError(ValueError):
    """A weights file cannot be used; the message is one line that names it and what is wrong with it."""


@dataclass(frozen=True)
class Layout:
    """What a code calls the parts of `MaskFeat`. Of its classifiers, our encoder.fc_norm and encoder.head.

    Attributes:
        code: whose names these are.
        renamed: beginnings of our name and of theirs, as regular expressions; the first that matches counts.
        ignored: beginnings of their keys that hold nothing of ours.
    """

    code: str
    renamed: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]

    def key(self, name: str) -> str:
        """Their name of our `name`."""
        for ours, theirs in self.renamed:
            if re.match(ours, name):
                return re.sub(ours, theirs, name, count=1)
        return name


SLOWFAST = Layout(
    "SlowFast",
    (
        (r"encoder\.norm\.", "pred_head.transforms.0.0."),
        (r"encoder\.fc_norm\.", "norm."),
        (r"encoder\.head\.", "head.projection."),
        (r"encoder\.", ""),
        (r"head\.", "pred_head.projections.0."),
    ),
    ignored=("hogs.",),
)
MMPRETRAIN = Layout(
    "mmpretrain",
    (
        (r"encoder\.patch_embed\.proj\.", "backbone.patch_embed.projection."),
        (r"encoder\.blocks\.(\d+)\.norm", r"backbone.layers.\1.ln"),
        (r"encoder\.blocks\.(\d+)\.mlp\.fc1\.", r"backbone.layers.\1.ffn.layers.0.0."),
        (r"encoder\.blocks\.(\d+)\.mlp\.fc2\.", r"backbone.layers.\1.ffn.layers.1."),
        (r"encoder\.blocks\.", "backbone.layers."),
        (r"encoder\.norm\.", "backbone.ln1."),
        (r"encoder\.fc_norm\.", "backbone.ln2."),
        (r"encoder\.head\.", "head.fc."),
        (r"encoder\.", "backbone."),
        (r"mask_token", "backbone.mask_token"),
        (r"head\.", "neck.fc."),
    ),
    ignored=("target_generator.", "hog_layer.", "data_preprocessor."),
)
TIMM = Layout(
    "timm",
    ((r"encoder\.", ""),),
    ignored=("mask_token", "decoder_", "lm_head.", "cls_pt_"),  # of the pre-training of MAE and BEiT
)


@dataclass(frozen=True)
class Normalisation:
    """What is subtracted from the channels of images, of values in [0, 1], and what they are divided by then."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Weights:
    """What a weights file holds.

    Attributes:
        file: for messages.
        layout: whose names the tensors have.
        tensors: by those names, on the CPU.
        normalisation: of the images that the weights were trained on, where the file's folder tells it.
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
        return self.has("encoder.head.weight")

    def get(self, name: str, dimensions: int) -> Tensor:
        """The tensor that we call `name`.

        Raises:
            WeightsError: it is missing, or not of so many dimensions.
        """
        key = self.layout.key(name)
        if key not in self.tensors:
            raise WeightsError(f"{self.file} is no vision transformer of {self.layout.code}'s: missing {key}")
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
    checkpoint = _load(file)
    tensors: Any = None
    if isinstance(checkpoint, dict):
        held = [checkpoint[entry] for entry in ("model_state", "state_dict", "model", "module") if entry in checkpoint]
        tensors = held[0] if held else checkpoint
    if not (isinstance(tensors, dict) and tensors and all(map(_is_plain, tensors.values()))):
        raise WeightsError(
            f"{file} holds no weights: neither model_state, state_dict, model or module, nor plain tensors by name"
        )
    if sum(tensor.nbytes for tensor in tensors.values()) > file.stat().st_size:  # views that repeat a few bytes
        raise WeightsError(f"{file} is damaged: its tensors claim more bytes than it has")
    if "model_state" in checkpoint:
        return Weights(file, SLOWFAST, tensors)
    if any(key.startswith("backbone.") for key in tensors):
        return Weights(file, MMPRETRAIN, _as_in_mmpretrain(tensors))
    plain = {key: tensor for key, tensor in tensors.items() if not key.endswith(".relative_position_index")}
    return Weights(file, TIMM, plain, _normalisation(file.parent / "config.json"))


def weights_file(path: Path) -> Path:
    """The one file that decides: `path`, or its model.safetensors if it is a folder in timm's Hugging Face layout.

    Raises:
        WeightsError: there is no such file.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise WeightsError(f"there is no weights file {file}")
    return file


def _load(file: Path) -> Any:
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        with torch.serialization.safe_globals([(_Nothing, name) for name in _NOTHING]):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # whatever a damaged or hostile file brings about
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise WeightsError(f"{file} is damaged, or no weights file ({reason})") from None
        raise WeightsError(
            f"{file} holds more than tensors ({refused[1]}), which is not loaded, since it could run code: if you "
            "trust it, load it with weights_only=False and save its model_state or state_dict alone"
        ) from None


def _is_plain(value: Any) -> bool:
    """Whether this is a tensor of numbers in memory, and none of the other things that torch can load as one."""
    return (
        isinstance(value, Tensor)
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and not (value.is_nested or value.is_quantized)
    )


def _normalisation(config: Path) -> Normalisation | None:
    """What timm's config.json says, if it is there and speaks of it."""
    try:
        stated = json.loads(config.read_text())
        stated = stated.get("pretrained_cfg", stated)  # timm's older files have no such part
        if "mean" not in stated or "std" not in stated:
            return None
        (red, green, blue), std = (tuple(map(float, stated[key])) for key in ("mean", "std"))
        if not (len(std) == 3 and min(std) > 0 and all(map(isfinite, (red, green, blue, *std)))):
            raise ValueError(f"mean {stated['mean']}, std {stated['std']}")
        return Normalisation((red, green, blue), std)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{config} is no configuration of timm's ({error})") from error


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
