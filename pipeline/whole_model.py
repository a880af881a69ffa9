"""Read and write a whole pre-training model in its own folder: encoder, mask token, and decoder or head, with settings.

    maskfeat.safetensors   the model's state dict, fp32
    maskfeat.json          "format", "version", "step", "target_width", "mean" and "std" of the pixels, and "settings":
                           section.key to value

The settings are only those of a recipe that decide what the model computes and predicts.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.convert import restore
from model.maskfeat import MaskFeat
from model.weights import OURS, WeightsError, read
from model.weights_file import WHOLE_MODEL
from model.writing import write_tensors
from pipeline.build import build_model
from pipeline.config import Recipe, load_recipe
from shards.files import parse_json

CONFIG = "maskfeat.json"
VERSION = 1

_BASE = "vit_base_300e"  # provides settings that a model does not depend on, such as the batch size
_SETTINGS = {
    "data": ("image_size", "frames", "sampling", "stride", "fps"),
    "model": ("name", "options", "position_init", "decoder", "decoder_width"),
    "mask": ("kind", "ratio"),
    "target": ("kind", "teacher", "teacher_weights", "loss", "tokenizer", "top"),
}
_KEYS = [f"{section}.{key}" for section, keys in _SETTINGS.items() for key in keys]


def write_model(folder: Path, model: MaskFeat, recipe: Recipe, step: int) -> None:
    """Write a model and its settings.

    For files of the target, such as a tokenizer, only the names are written, not the folders.

    Args:
        folder: an existing folder.
        model: the model of the recipe.
        recipe: the recipe of the run.
        step: completed training steps of the model.
    """
    plain = recipe.plain()
    settings: dict[str, Any] = {}
    for section, keys in _SETTINGS.items():
        for key in keys:
            value = plain[section][key]
            needs_file = section == "target" and key in ("teacher", "teacher_weights", "tokenizer")
            settings[f"{section}.{key}"] = Path(value).name if needs_file and value else value
    stated = {
        "format": "maskfeat",
        "version": VERSION,
        "step": step,
        "target_width": model.target_width,
        "mean": recipe.model.mean,
        "std": recipe.model.std,
        "settings": settings,
    }
    write_tensors(model.state_dict(), folder / WHOLE_MODEL)
    (folder / CONFIG).write_text(json.dumps(stated, indent=2) + "\n", "utf-8")


def read_model(folder: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, MaskFeat]:
    """Read the output of `write_model`: the model, for evaluation on the CPU, and a recipe with its settings.

    Args:
        folder: the folder of the two files.
        overrides: "section.key=value", such as `target.tokenizer=PATH`.

    Raises:
        ConfigError: an override is wrong.
        WeightsError: the files are missing or damaged, or do not match.
    """
    recipe, width = stated(folder, overrides)
    model, weights = build_model(recipe, width), folder / WHOLE_MODEL
    found = read(weights)
    if found.layout is not OURS:
        raise WeightsError(f"{weights} does not fit {CONFIG} beside it: it is not a whole model")
    restore(model, found)
    return recipe, model.eval()


def stated(folder: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, int]:
    """Read the description of a whole model: a recipe with its settings, and predicted values per patch.

    Args and errors are those of `read_model`.
    """
    config = folder / CONFIG
    try:
        found = parse_json(config.read_bytes())
        if found["format"] != "maskfeat" or found["version"] != VERSION:
            raise ValueError(f"format {found['format']!r}, version {found['version']!r}")
        settings, width = found["settings"], int(found["target_width"])
        if unknown := set(settings) - set(_KEYS):
            raise ValueError(f"unknown setting {min(unknown)}")
        settings |= {f"model.{key}": list(map(float, found[key])) for key in ("mean", "std")}
        own = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]
    except OSError as error:
        raise WeightsError(f"{config} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise WeightsError(f"{config} does not describe a MaskFeat of this version ({error})") from error
    return load_recipe(_BASE, [f"run.dir={folder}", f"data.shards={folder}", *own, *overrides]), width
