"""Open the encoder to probe: that of a run, of a weights file or of timm, with its recipe."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from pydantic import ValidationError
from torch import Tensor

from model.convert import fill
from model.encoders.encoder import Encoder
from model.geometry import Architecture, geometry
from model.size import ImageSize
from model.weights import TIMM, Normalisation, Weights, WeightsError, read
from model.weights_file import WHOLE_MODEL
from pipeline.build import build_model, predicted_width
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.config import Recipe, load_recipe
from pipeline.recipe_files import read_settings
from pipeline.record import kind_of
from pipeline.settings import ConfigError
from pipeline.whole_model import CONFIG, stated
from shards.files import parse_json

_PLAIN = "vit_base_300e"  # the recipe for weights without a run: its sections data and model have only defaults
_GIVEN = ("img_size", "in_chans", "num_classes", "global_pool", "fc_norm", "use_fc_norm")  # set by `build_encoder`


@dataclass(frozen=True)
class Source:
    """An encoder to probe.

    Attributes:
        recipe: a recipe, of which `data`, `model`, `run.seed` and `engine.precision` matter.
        encoder: an encoder of images or clips; its network is on the CPU, for evaluation.
        notes: notes on weights that were changed or not copied.
    """

    recipe: Recipe
    encoder: Encoder
    notes: list[str]

    def identity(self) -> str:
        """Return the SHA-256 of everything that maps pixels to features: architecture, options and weights."""
        model = self.recipe.model
        digest = hashlib.sha256(json.dumps([model.name, model.options], sort_keys=True).encode())
        for name, tensor in self.encoder.network.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().numpy())
        return digest.hexdigest()


def of_run(run: Path, found: Checkpoint | None, overrides: Sequence[str]) -> Source:
    """Open the encoder of a run.

    Args:
        run: `run.dir`.
        found: the checkpoint; None: the state at the start of the run, without `model.init`.
        overrides: overrides of its recipe; for another `data.image_size`, learned positions are resampled.

    Raises:
        ConfigError: an override is wrong.
        WeightsError: the checkpoint does not match the recipe.
    """
    recipe, recorded = _recipe_of_run(run, overrides), _recipe_of_run(run, [])
    if found and not any(name.endswith("mask_token") for name in found.shapes):
        raise WeightsError(f"{found.folder} is not of pre-training: it has no mask token; choose another --step")
    place, weights, size = run, None, recorded.data.size
    if found:
        place, weights, size = found.folder, found.weights(), _trained_on(found)
    width = predicted_width(weights) if weights else None  # without loading a teacher
    return Source(recipe, _encoder_of(recipe, size, weights, width, place), [])


def of_weights(weights: str, untrained: bool, overrides: Sequence[str]) -> Source:
    """Open the encoder of a weights file or folder for `model.init`, or of timm's pretrained models.

    The architecture is inferred from the weights where possible; for a file with timm's names it is
    `model.name` and `model.options`.

    Args:
        untrained: keep the random weights of `run.seed`.

    Raises:
        ConfigError, WeightsError: the weights do not exist, or do not match the recipe.
    """
    path = Path(weights)
    if (path / CONFIG).is_file():
        (recipe, width), (recorded, _) = stated(path, overrides), stated(path)
        whole = None if untrained else read(path / WHOLE_MODEL).tensors
        return Source(recipe, _encoder_of(recipe, recorded.data.size, whole, width, path), [])
    if path.exists():
        loaded = read(path)
        told = _settings(loaded) + _statistics(loaded)
    elif timm.is_model(weights):
        loaded = _pretrained(weights)
        size = list(timm.get_pretrained_cfg(weights).input_size[1:])
        told = [f"model.name={weights}", f"data.image_size={size}"]
    else:
        raise _unknown(weights)
    recipe = load_recipe(_PLAIN, [*told, *overrides])
    torch.manual_seed(recipe.run.seed)
    model = build_model(recipe, 1)  # the head is not used
    notes = [] if untrained else fill(model, loaded, Normalisation(*recipe.model.statistics), encoder_only=True)
    return Source(recipe, model.eval().view, notes)


def _encoder_of(
    recipe: Recipe, size: ImageSize, weights: Mapping[str, Tensor] | None, width: int | None, place: Path
) -> Encoder:
    """Return the encoder of a pre-training model, for evaluation on the CPU.

    Args:
        recipe: a recipe, perhaps with another size than that of training.
        size: the size of the training inputs.
        weights: the model's weights; None: those at the start of its run, without `model.init`.
        width: predicted values per patch; None: see the recipe.
        place: where the weights are from.

    Raises:
        ConfigError: the model cannot be built.
        WeightsError: the weights do not match the recipe.
    """
    torch.manual_seed(recipe.run.seed)  # as in the run
    if recipe.model.decoder:  # which may not fit another size, and is not probed
        if weights is None:
            weights = build_model(_updated(recipe, "data", image_size=size), width).state_dict()
        recipe, width = _updated(recipe, "model", decoder=None), 1
    model = build_model(recipe, width)
    if weights:
        prefix = "encoder."
        tensors = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        fill(model, Weights(place, TIMM, tensors, image_size=size))
    return model.eval().view


def _updated(recipe: Recipe, section: str, **settings: Any) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=settings)})


def stated_recipe(source: str, overrides: Sequence[str]) -> Recipe | None:
    """Return the recipe of a run with the overrides or, for weights, a recipe with nothing but the overrides.

    None for a whole pre-training model, whose recipe lies beside its weights.

    Raises:
        ConfigError: the source does not exist, or is a run of fine-tuning, or an override is wrong.
    """
    path = Path(source)
    if (path / "config.yaml").exists():
        return _recipe_of_run(path, overrides)
    if (path / CONFIG).is_file():
        return None
    if not path.exists() and not timm.is_model(source):
        raise _unknown(source)
    return load_recipe(_PLAIN, overrides)


def _recipe_of_run(run: Path, overrides: Sequence[str]) -> Recipe:
    config = run / "config.yaml"
    if kind_of(read_settings(config)) == "finetune":
        raise ConfigError(f"{run} is a run of fine-tuning: export it, and probe the folder of its weights")
    return load_recipe(str(config), overrides)


def _trained_on(found: Checkpoint) -> ImageSize:
    """Return the size of a checkpoint's training inputs. Raises WeightsError if its recipe is invalid."""
    try:
        return Recipe.model_validate(found.facts.recipe).data.size
    except (ValidationError, TypeError) as error:
        raise WeightsError(f"{found.folder}: its recipe is invalid; choose another --step") from error


def _unknown(source: str) -> ConfigError:
    return ConfigError(f"{source} is neither a run.dir, nor weights, nor the name of a timm model: correct it")


def _settings(weights: Weights) -> list[str]:
    """Return overrides that describe the architecture, as far as the weights or the config.json beside them do."""
    if weights.layout is not TIMM:
        return _overrides(geometry(weights))
    config = weights.file.parent / "config.json"
    if not config.is_file():
        return []
    try:
        stated = parse_json(config.read_bytes())
        _, *frames, height, width = stated.get("pretrained_cfg", stated)["input_size"]
        options = {key: value for key, value in stated.get("model_args", {}).items() if key not in _GIVEN}
        sides = (height, width)
        return _overrides(Architecture(stated["architecture"], sides, frames[0] if frames else None, options))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise WeightsError(f"{config} is not a timm configuration ({error!r})") from error


def _statistics(weights: Weights) -> list[str]:
    """Return overrides for the normalisation of weights for clips; weights for images are rewritten instead.

    The weights of an MViT cannot be rewritten, since it pads its inputs.
    """
    if not weights.of_clips or weights.normalisation is None:
        return []
    return [f"model.{key}={list(getattr(weights.normalisation, key))}" for key in ("mean", "std")]


def _overrides(found: Architecture) -> list[str]:
    size, options = f"data.image_size={json.dumps(found.image_size)}", f"model.options={json.dumps(found.options)}"
    return [f"model.name={found.name}", size, options, *([f"data.frames={found.frames}"] if found.frames else [])]


def _pretrained(name: str) -> Weights:
    """Load timm's weights of a model, from its cache or the hub."""
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # a download may raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"timm has no weights for {name} here ({reason}): give a file instead") from error
    cfg = model.pretrained_cfg
    normalisation = Normalisation(tuple(cfg["mean"]), tuple(cfg["std"]))
    return Weights(Path(name), TIMM, model.state_dict(), normalisation, ImageSize(*cfg["input_size"][1:]))
