"""MaskFeat: from pixels to the loss of predicting what is under masked patches."""

from typing import Any

from torch import Tensor

from pipeline.build import build_examples, build_model, start_from_init
from pipeline.config import Recipe
from pipeline.data.batch import Batch
from pipeline.data.exact import ExactData
from pipeline.data.stream import StreamData
from pipeline.examples import Example
from pipeline.pretrain.evaluate import Validation
from pipeline.train.engine import DTYPES, Engine, decay_groups
from pipeline.train.monitor import Metrics, Monitor
from pipeline.train.phases import Phases
from pipeline.train.world import World


class Pretraining:
    """The `Task` of a pre-training run.

    Args:
        recipe, world, phases: of the run.
        data: its training images.

    Raises:
        ConfigError, ShardError, DataError: the model, its target or the validation images cannot be used.
    """

    name = "pre-training"
    average: float | None = None

    def __init__(self, recipe: Recipe, data: ExactData | StreamData, world: World, phases: Phases) -> None:
        self._recipe, self._data = recipe, data
        self.model = build_model(recipe)
        self._examples = build_examples(recipe, self.model, DTYPES[recipe.engine.precision], world.device)
        self.identity = self._examples.target.identity
        self.inputs: dict[str, Any] = {}
        self._validation = None
        if recipe.data.validation:
            self._validation = Validation(recipe.data.validation, recipe, world, self._examples, phases)
            self.inputs["data.validation (manifest)"] = self._validation.identity

    def start(self) -> list[str]:
        """See `Task`."""
        note = start_from_init(self.model, self._recipe)
        return [f"model.init: {note}"] if note else []

    def groups(self) -> list[dict[str, Any]]:
        """See `Task`."""
        return decay_groups(self.model, self._recipe.optim.weight_decay)

    def prepare(self, batch: Batch) -> tuple[Example, Tensor]:
        """The example, and the weights of its images."""
        return self._examples.example(batch.images, batch.mask_keys), batch.weights

    def errors(self, engine: Engine, prepared: tuple[Example, Tensor]) -> tuple[Tensor, Tensor]:
        """See `Task`."""
        example, weights = prepared
        predictions = engine.predict(example.inputs, example.mask)
        return self._examples.target.losses(predictions, example.targets, len(example.inputs)), weights

    def begin(self, engine: Engine, done: int, monitor: Monitor | None) -> None:
        """Measure what predictors that learn nothing lose, beside which the validation loss has to be read."""
        if self._validation is None:
            return
        if monitor:
            monitor.say("validation losses to compare with: zero, the mean target, the untrained model ...")
        losses = self._validation.baselines(
            lambda batches: self._data.batches(0, batches),
            None if done else lambda: self.validate(engine, 0, monitor)["val_loss"],
        )
        if monitor:
            monitor.say("validation loss: " + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
        self._constants = {name: losses[name] for name in ("zero", "mean")}

    def validate(self, engine: Engine, done: int, monitor: Monitor | None) -> Metrics:
        """The loss on the validation images, if there are any, and the picture."""
        if self._validation is None:
            return {}
        loss, bad = self._validation.loss(engine)
        picture = self._validation.picture(engine)
        if monitor:
            monitor.picture(done, "reconstruction", picture)
            if done:
                monitor.levels(done, self._constants)
        return {"val_loss": loss, "val_bad_samples": bad}
