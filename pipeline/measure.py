"""Measure a trained model on a validation set, after the run and without an engine."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.build import build_examples, build_model
from pipeline.checkpoints.checkpoint import Checkpoint
from pipeline.cluster.phases import Phases
from pipeline.cluster.world import World
from pipeline.config import load_recipe
from pipeline.pretrain.evaluate import MEAN_BATCHES, Validation, best_constant
from pipeline.recipes import read_settings
from pipeline.record import kind_of
from pipeline.settings import ConfigError
from pipeline.train.engine import DTYPES
from pipeline.train.setup import open_data


class Frozen:
    """A model that is only evaluated, an `Evaluator`.

    Args:
        model: on its device.
        dtype: that it computes in.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._model, self.dtype = model.to(dtype).eval(), dtype

    def predict(self, *inputs: Any) -> Tensor:
        """Return the model's `forward`."""
        return cast(Tensor, self._model(*inputs))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Compute without gradients inside."""
        with torch.no_grad():
            yield


def measure(run: Path, found: Checkpoint, overrides: Sequence[str], world: World) -> dict[str, float]:
    """Return loss and scores of a checkpoint of pre-training, and of predictors that learn nothing. All ranks together.

    Args:
        run: `run.dir`.
        found: its checkpoint.
        overrides: of its recipe, such as `data.validation`.

    Raises:
        ConfigError: the run is not of pre-training, an override is wrong, or there is nothing to validate on.
        ShardError, DataError: a data set cannot be used.
    """
    config = run / "config.yaml"
    if kind_of(read_settings(config)) == "finetune":
        raise ConfigError(
            f"{run} is a run of fine-tuning, whose accuracy is in its metrics.jsonl: name one of pre-training"
        )
    recipe = load_recipe(str(config), overrides)
    if recipe.data.validation is None:
        raise ConfigError("there is nothing to validate on: set data.validation to a folder of shards")
    weights = found.weights()
    model = build_model(recipe, len(weights["head.weight"]))
    model.load_state_dict(weights)
    dtype = DTYPES[recipe.engine.precision]
    examples = build_examples(recipe, model, dtype, world.device)
    phases = Phases(run, world.rank, recipe.run.deadline)  # only names what is done
    validation = Validation(recipe.data.validation, recipe, world, examples, phases)
    metrics, _ = validation.measure(Frozen(model.to(world.device), dtype))
    data = open_data(recipe, world)
    try:
        best = best_constant(examples, data.batches(0, MEAN_BATCHES), world)
    finally:
        data.close()
    return {name: float(value) for name, value in metrics.items()} | validation.constants(best)
