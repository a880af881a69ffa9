"""Measure a trained model on a validation set, after the run and without an engine."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from model.maskfeat import MaskFeat
from pipeline.build import build_examples, predictions_of
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.cluster.phases import Phases
from pipeline.cluster.world import World
from pipeline.config import Recipe, TrainingRecipe, load, load_recipe
from pipeline.data.data_sets import DataSets
from pipeline.data.labels import labels_of
from pipeline.finetune.config import FinetuneRecipe
from pipeline.finetune.views import accuracy_by_views
from pipeline.pretrain.evaluate import MEAN_BATCHES, Validation, best_constant
from pipeline.recipe_files import read_settings
from pipeline.record import kind_of
from pipeline.settings import ConfigError
from pipeline.targets.registry import output_width
from pipeline.train.engine import DTYPES
from pipeline.train.setup import open_data
from pipeline.trained import load_model
from shards.manifest import Manifest


class Frozen:
    """A model for evaluation only, an `Evaluator`.

    Args:
        model: the model, on its device.
        dtype: the compute precision.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._model, self.dtype = model.to(dtype).eval(), dtype

    def predict(self, *inputs: Any) -> Tensor:
        """Return the model's `forward`."""
        return cast(Tensor, self._model(*inputs))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Compute without gradients in the block."""
        with torch.no_grad():
            yield


def recorded(run: Path, overrides: Sequence[str]) -> TrainingRecipe:
    """Return the recipe that a run has recorded, with overrides. Raises ConfigError if it is not a run."""
    config = run / "config.yaml"
    if not config.is_file():
        raise ConfigError(f"{run} is not a run: it does not have a config.yaml; correct the path")
    return load(FinetuneRecipe if kind_of(read_settings(config)) == "finetune" else Recipe, str(config), overrides)


def measure_classifier(
    run: Path, found: Checkpoint, overrides: Sequence[str], clips: Sequence[int] | None, crops: int, world: World
) -> dict[str, float]:
    """Return a fine-tuning checkpoint's multi-view accuracy, see `accuracy_by_views`. All ranks call this together.

    Args:
        run, found, overrides, world: see `measure`.
        clips: clips per video; None: ten, or one for images.
        crops: crops per clip.

    Raises:
        ConfigError, CheckpointError, ShardError, DataError: as `measure` does.
    """
    recipe = load(FinetuneRecipe, str(run / "config.yaml"), overrides)
    model = load_model(found, recipe)
    training, validation = DataSets(recipe.data).manifest, Manifest.load(recipe.data.validation)
    labels = labels_of(training, validation)[1]
    phases = Phases(run, world.rank, recipe.run.deadline)  # only names the phases
    frozen = Frozen(model.to(world.device), DTYPES[recipe.engine.precision])
    clips = clips or ([1] if validation.video is None else [10])
    return accuracy_by_views(frozen, validation, labels, recipe, world, phases, clips, crops)


def measure(run: Path, found: Checkpoint, overrides: Sequence[str], world: World) -> dict[str, float]:
    """Return loss and scores of a pre-training checkpoint, and of constant predictors. All ranks call this together.

    Args:
        run: `run.dir`.
        found: the checkpoint.
        overrides: overrides of its recipe, such as `data.validation`.
        world: the ranks.

    Raises:
        ConfigError: an override is wrong, or there is nothing to validate on.
        CheckpointError: the checkpoint belongs to another model.
        ShardError, DataError: a data set cannot be used.
    """
    recipe = load_recipe(str(run / "config.yaml"), overrides)
    if recipe.data.validation is None:
        raise ConfigError("there is nothing to validate on: set data.validation to a folder of shards")
    model = load_model(found, recipe)
    assert isinstance(model, MaskFeat)
    if model.target_width != (width := output_width(recipe.target, predictions_of(model.view))):
        raise ConfigError(
            f"target.kind={recipe.target.kind} has {width} numbers per patch, and the model of {found.folder} predicts "
            f"{model.target_width}: leave it out, to measure the target that the run was trained for"
        )
    dtype = DTYPES[recipe.engine.precision]
    phases = Phases(run, world.rank, recipe.run.deadline)  # only names the phases
    data = open_data(recipe, world)
    try:
        examples = build_examples(recipe, model, dtype, world.device, single_frames=len(data.media) > 1)
        micro_batch, shards = recipe.micro_batch(world.size), recipe.data.validation
        validation = Validation(shards, recipe.data, recipe.run, micro_batch, world, examples, phases)
        metrics, _ = validation.measure(Frozen(model.to(world.device), dtype))
        medium = validation.medium if validation.medium in data.media else None
        best = best_constant(examples, data.batches(0, MEAN_BATCHES, medium), world)
    finally:
        data.close()
    return {name: float(value) for name, value in metrics.items()} | validation.constants(best)
