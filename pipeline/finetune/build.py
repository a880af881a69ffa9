"""From a fine-tuning recipe to its model."""

from model.classifier import Classifier
from model.maskfeat import build_encoder
from pipeline.config import ConfigError
from pipeline.finetune.config import FinetuneRecipe

CLASSES = "classes.txt"  # in run.dir: a name a line, in the order of the head's outputs


def build_classifier(recipe: FinetuneRecipe, classes: int) -> Classifier:
    """The untrained model of a recipe. Raises ConfigError for one that cannot be."""
    try:
        encoder = build_encoder(recipe.model.name, recipe.data.image_size, classes, **recipe.model.options)
        model = Classifier(encoder, recipe.model.position_init)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"model: {error}") from error
    encoder.set_grad_checkpointing(recipe.engine.activation_checkpointing)
    return model
