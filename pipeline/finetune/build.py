"""From a fine-tuning recipe to its model and how fast its layers learn."""

from typing import Any

from timm.optim import param_groups_layer_decay
from torch import Tensor

from model.classifier import Classifier
from model.maskfeat import build_encoder
from pipeline.build import tried
from pipeline.finetune.config import FinetuneOptim, FinetuneRecipe

CLASSES = "classes.txt"  # in run.dir: a name a line, in the order of the head's outputs


def build_classifier(recipe: FinetuneRecipe, classes: int) -> Classifier:
    """The untrained model of a recipe. Raises ConfigError for one that cannot be."""

    def make() -> Classifier:
        encoder = build_encoder(recipe.model.name, recipe.data.image_size, classes, **recipe.model.options)
        return Classifier(encoder, recipe.model.position_init)

    def classifies(model: Classifier, images: Tensor) -> bool:
        return tuple(model(images).shape) == (len(images), classes or model.encoder.num_features)

    return tried(recipe, make, classifies)


def layer_groups(model: Classifier, optim: FinetuneOptim) -> list[dict[str, Any]]:
    """Rates fall from layer to layer; vectors and biases are not decayed, all else is, tokens included."""
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        model.encoder, optim.weight_decay, layer_decay=optim.layer_decay
    )
    return groups
