"""Build the model of a fine-tuning recipe, and its parameter groups."""

from pathlib import Path
from typing import Any

from torch import Tensor

from model.classifier import Classifier
from pipeline.build import network_of, tried
from pipeline.finetune.config import FinetuneOptim, FinetuneRecipe
from pipeline.settings import ConfigError
from shards.files import parse_json
from shards.storage import read
from shards.text import excerpt

CLASSES = "classes.json"  # in run.dir: a list of names, in the order of the head's outputs
_CLASSES_BEFORE = "classes.txt"  # of older runs: one name per line


def build_classifier(recipe: FinetuneRecipe, classes: int) -> Classifier:
    """Build the untrained model of a recipe. Raises ConfigError where that is not possible."""

    def make() -> Classifier:
        return Classifier(network_of(recipe, classes), recipe.model.position_init)

    def classifies(model: Classifier, inputs: Tensor) -> bool:
        return tuple(model(inputs).shape) == (len(inputs), classes or model.view.width)

    return tried(recipe, make, classifies)


def class_names(run: Path, outputs: int) -> list[str]:
    """Return the names of a run's classes, one per output of the head. Raises ConfigError for any other number."""
    try:
        if (run / CLASSES).exists():
            names = parse_json(read(str(run / CLASSES)))
        else:  # not splitlines or a text file, which also split at other characters
            names = read(str(run / _CLASSES_BEFORE)).decode().removesuffix("\n").split("\n")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("not a list of names")
        if len(names) != outputs:
            raise ValueError(f"{len(names)} names")
    except (FileNotFoundError, ValueError) as error:
        what = "nothing" if isinstance(error, FileNotFoundError) else excerpt(str(error))
        raise ConfigError(
            f"{run / CLASSES} must name the {outputs} classes of the head, but {what} was found there or in "
            f"{_CLASSES_BEFORE}: write it as a JSON list; dataset.json of the training set has the names as `classes`"
        ) from None
    return names


def layer_groups(model: Classifier, optim: FinetuneOptim) -> list[dict[str, Any]]:
    """Return parameter groups with layer-wise learning rates, and weight decay for all but vectors and biases."""
    view, groups = model.view, dict[tuple[int, bool], dict[str, Any]]()
    for name, parameter in model.encoder.named_parameters():
        if parameter.requires_grad:
            layer, decayed = view.layer_of(name), parameter.ndim > 1 or name in view.decayed_vectors
            scale = optim.layer_decay ** (view.depth + 1 - layer)
            decay = optim.weight_decay if decayed else 0.0
            group = groups.setdefault((layer, decayed), {"params": [], "lr_scale": scale, "weight_decay": decay})
            group["params"].append(parameter)
    return list(groups.values())
