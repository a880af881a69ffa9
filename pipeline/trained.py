"""The trained model of a checkpoint."""

from pydantic import ValidationError
from safetensors import SafetensorError

from model.classifier import Classifier
from model.maskfeat import MaskFeat
from pipeline.build import build_model, load_trained, predicted_width
from pipeline.checkpoints.checkpoint import AVERAGE, Checkpoint, CheckpointError
from pipeline.config import Recipe, TrainingRecipe
from pipeline.finetune.build import build_classifier
from pipeline.finetune.config import FinetuneRecipe
from pipeline.record import kind_of
from pipeline.settings import ConfigError
from shards.text import one_line

_HEADS = ("encoder.head.weight", "encoder.head.1.weight")  # of classifiers; the latter of an MViT


def recipe_of(found: Checkpoint) -> Recipe | FinetuneRecipe:
    """Return the recipe that a checkpoint keeps. Raises CheckpointError where that is none."""
    kind = FinetuneRecipe if kind_of(found.facts.recipe) == "finetune" else Recipe
    try:
        return kind.model_validate(found.facts.recipe)
    except (ValidationError, TypeError) as error:
        raise _no_model(found, error) from error


def load_model(found: Checkpoint, recipe: TrainingRecipe, average: bool = False) -> MaskFeat | Classifier:
    """Return the model of a checkpoint, for evaluation.

    Args:
        found: the checkpoint.
        recipe: its own, see `recipe_of`, or one with other settings.
        average: take the moving average of the weights.

    Raises:
        CheckpointError: the recipe is of another model than the weights, or these have no average.
    """
    try:
        weights = found.weights(AVERAGE if average else "weight")
        if average and not weights:
            raise CheckpointError(f"{found.folder} has no average of the weights: leave out --average")
        model: MaskFeat | Classifier
        if isinstance(recipe, FinetuneRecipe):
            head = next(weights[name] for name in _HEADS if name in weights)
            model = build_classifier(recipe, len(head))
        else:
            assert isinstance(recipe, Recipe)
            model = build_model(recipe, predicted_width(weights))
        load_trained(model, weights)
    except (ConfigError, LookupError, StopIteration, TypeError, RuntimeError, SafetensorError) as error:
        raise _no_model(found, error) from error
    return model.eval()


def _no_model(found: Checkpoint, error: Exception) -> CheckpointError:
    reason = one_line((str(error).splitlines() or [type(error).__name__])[:2][-1].strip())
    return CheckpointError(f"{found.folder}: its recipe and its weights make no model ({reason})")
