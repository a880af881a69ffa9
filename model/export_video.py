"""Write a network of clips as safetensors and config.json, which a few lines of torchvision or timm read."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from model.encoders.mvit import SIZES, mvit_settings
from model.encoders.registry import encoder_of
from model.encoders.tubelet import TUBELET
from model.size import ImageSize
from model.weights import Normalisation
from model.writing import write_tensors

_MVIT = """\
import json, torch
from safetensors.torch import load_file
from torchvision.models.video.mvit import MSBlockConfig, MViT

config = json.load(open("FOLDER/config.json"))
settings = config["torchvision"] | {"spatial_size": tuple(config["torchvision"]["spatial_size"])}
settings["block_setting"] = [MSBlockConfig(**block) for block in settings["block_setting"]]
model = MViT(**settings).eval()
"""
_MVIT_ENCODER = """\
model.head = torch.nn.Identity()
model.load_state_dict(load_file("FOLDER/model.safetensors"))
model.norm.register_forward_hook(lambda module, inputs, tokens: tokens[:, 1:].mean(1, keepdim=True))
"""
_MVIT_CLASSIFIER = """\
model.load_state_dict(load_file("FOLDER/model.safetensors"))
model.norm.register_forward_pre_hook(lambda module, inputs: inputs[0][:, 1:].mean(1, keepdim=True))
"""
_TUBELET_VIT = """\
import json, timm, torch
from safetensors.torch import load_file

class Tubelets(torch.nn.Conv3d):
    def forward(self, clips):
        return super().forward(clips).flatten(2).transpose(1, 2)

config, weights = json.load(open("FOLDER/config.json")), load_file("FOLDER/model.safetensors")
frames, places = weights.pop("pos_embed_temporal"), weights.pop("pos_embed_spatial")
positions = (frames[:, :, None] + places[:, None]).flatten(1, 2)
weights["pos_embed"] = torch.cat([weights.pop("pos_embed_class"), positions], dim=1)
weights = {name.replace("patch_embed.proj", "patch_embed"): value for name, value in weights.items()}
model = timm.create_model(config["architecture"], **config["model_args"]).eval()
width, _, *patch = weights["patch_embed.weight"].shape
model.patch_embed = Tubelets(3, width, patch, patch)
model.pos_embed = torch.nn.Parameter(weights["pos_embed"])
model.load_state_dict(weights)
"""
_INPUT = """\
mean, std = (torch.tensor(config["pretrained_cfg"][key])[:, None, None, None] for key in ("mean", "std"))
clips = torch.rand(1, *config["pretrained_cfg"]["input_size"])  # yours: (batch, RGB, frames, rows, columns), in [0, 1]
"""


def export_video(
    network: nn.Module,
    folder: Path,
    *,
    name: str,
    options: dict[str, Any],
    normalisation: Normalisation,
    crop: float = 1.0,
    classes: Sequence[str] = (),
) -> None:
    """Write model.safetensors and config.json.

    The names of the tensors are those of torchvision's `MViT`, or timm's for the blocks of a tubelet ViT.

    Args:
        network: a result of `build_network` for clips.
        folder: created if missing.
        name, options: the arguments of `build_network`.
        normalisation: that of the inputs.
        crop: share of the largest centred crop that evaluation takes.
        classes: class names, in the order of the head's outputs; none: they are omitted.
    """
    view = encoder_of(network)
    _, frames, height, width = view.input_shape
    size = ImageSize(height, width).sides
    config: dict[str, Any] = {"architecture": name}
    if name in SIZES:
        settings = mvit_settings(name, size, frames, view.classes, **options)
        config["torchvision"] = settings | {"block_setting": [asdict(block) for block in settings["block_setting"]]}
        config["model_args"] = options
    else:
        head = {"num_classes": view.classes, "global_pool": "avg", "fc_norm": view.classes > 0}
        config["model_args"] = {"img_size": size, **head, **options}
    config["pretrained_cfg"] = {
        "tag": "maskfeat",
        "num_classes": view.classes,
        "input_size": view.input_shape,
        "interpolation": "bicubic",
        "crop_pct": crop,
        "mean": normalisation.mean,
        "std": normalisation.std,
    }
    if classes:
        config["pretrained_cfg"]["label_names"] = list(classes)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def loader(network: nn.Module, name: str) -> str:
    """Return Python code that reads the export in FOLDER, without this project, and computes `outputs`.

    These are the features of `clips`, (B, width), or a classifier's logits, (B, classes).
    """
    view = encoder_of(network)
    mvit = _MVIT + (_MVIT_CLASSIFIER if view.classes else _MVIT_ENCODER)
    code = mvit if name in SIZES else _TUBELET_VIT
    single = name not in SIZES and view.input_shape[1] == 1
    shown = f"((clips - mean) / std).expand(-1, -1, {TUBELET}, -1, -1)" if single else "(clips - mean) / std"
    return f"{code}{_INPUT}with torch.no_grad():\n    outputs = model({shown})\n"
