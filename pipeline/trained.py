"""Open trained models: from a run's checkpoint, or from any other weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from model.classifier import Classifier
from model.encoders.encoder import Encoder
from model.maskfeat import MaskFeat
from pipeline.build import build_model, load_trained, predicted_width
from pipeline.checkpoints.checkpoint import AVERAGE, Checkpoint, CheckpointError, chosen
from pipeline.config import Recipe, TrainingRecipe
from pipeline.finetune.build import build_classifier, class_names
from pipeline.finetune.config import FinetuneRecipe
from pipeline.pixels import normalise
from pipeline.probe.source import of_weights
from pipeline.record import kind_of
from pipeline.sections import Engine
from pipeline.settings import ConfigError
from pipeline.whole_model import CONFIG, read_model
from shards.text import one_line

PLAIN = Engine(precision="fp32", compile="none")  # for evaluation

_HEADS = ("encoder.head.weight", "encoder.head.1.weight")  # of classifiers; the latter in an MViT


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained encoder, for evaluation, with the rest of its model if available.

    Attributes:
        recipe: its `data` and `model` describe the inputs and the network; computation is in fp32, without compiling.
        encoder: an encoder of images or clips; its network is on the CPU in fp32 until it is moved.
        model: the whole pre-training model that contains the encoder; None where the weights lack its head.
        notes: notes on weights that were changed or not copied.
        classes: names, in the order of a classifier's outputs; empty without a classifier.
    """

    recipe: TrainingRecipe
    encoder: Encoder
    model: MaskFeat | None
    notes: list[str]
    classes: list[str] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        device: torch.device = next(self.encoder.network.parameters()).device
        return device

    def features(self, inputs: Tensor) -> Tensor:
        """Return the pooled feature of each input, float32 (B, width), as the exported network does.

        Args:
            inputs: uint8 images (B, 3, H, W) or clips (B, 3, frames, H, W) of the recipe's size, on any device.
        """
        with torch.no_grad():
            pixels = normalise(inputs.to(self.device), torch.float32, self.recipe.model.statistics)
            return self.encoder.pooled(pixels).float()

    def likeliest(self, features: Tensor) -> list[tuple[str, float]]:
        """Return the name and the probability of the likeliest class of each input of a classifier.

        Args:
            features: float32 (B, width), see `features`.
        """
        with torch.no_grad():
            shares, places = self.encoder.head(features.to(self.device)).softmax(1).max(1)
        return [(self.classes[place], share) for place, share in zip(places.tolist(), shares.tolist(), strict=True)]


def open_trained(weights: str, step: int | None = None, overrides: Sequence[str] = ()) -> Trained:
    """Open weights of any kind.

    Args:
        weights: a run.dir of pre-training or fine-tuning; a folder of maskfeat export; a file or folder for
            model.init; or the name of a timm model.
        step: step of a run's older checkpoint; None: the newest valid one.
        overrides: "section.key=value", settings for weights that are not a run, such as `model.name=...` for a file
        that does not contain it.

    Raises:
        CheckpointError, ConfigError, WeightsError: the weights do not exist, or cannot be used.
    """
    path = Path(weights)
    is_run = (path / "checkpoints").is_dir() or (path / "config.yaml").is_file()
    if step is not None and not is_run:
        raise ConfigError(f"{weights} is not a run, and only a run has checkpoints to choose from: leave out the step")
    if is_run and overrides:
        raise ConfigError(f"{weights} is a run, which has its settings: leave out {overrides[0]}")
    if is_run:
        found = chosen(path, step)
        recipe = recipe_of(found).model_copy(update={"engine": PLAIN})
        model = load_model(found, recipe)
        if isinstance(model, MaskFeat):
            return Trained(recipe, model.view, model, [])
        return Trained(recipe, model.view, None, [], class_names(path, model.view.classes))
    if (path / CONFIG).is_file():
        whole_recipe, whole = read_model(path, overrides)
        return Trained(whole_recipe.model_copy(update={"engine": PLAIN}), whole.view, whole, [])
    source = of_weights(weights, untrained=False, overrides=[f"data.shards={weights}", *overrides])  # none are read
    return Trained(source.recipe, source.encoder, None, source.notes)


def recipe_of(found: Checkpoint) -> Recipe | FinetuneRecipe:
    """Return the recipe in a checkpoint. Raises CheckpointError where it is invalid."""
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
        average: use the moving average of the weights.

    Raises:
        CheckpointError: the recipe does not match the weights, or there is no average.
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
    return CheckpointError(f"{found.folder}: its recipe and its weights do not match ({reason})")
