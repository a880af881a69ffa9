"""MaskFeat: from pixels to the loss of predicting what is under masked patches."""

import shlex
from typing import Any, cast

from torch import Tensor

from pipeline.build import build_examples, build_model, start_from_init
from pipeline.cluster.phases import Phases
from pipeline.cluster.world import World
from pipeline.config import Recipe
from pipeline.data.batch import Batch
from pipeline.data.training_data import ListedData, TrainingData
from pipeline.estimate import input_flops
from pipeline.examples import Example, ExampleMaker
from pipeline.pretrain.evaluate import Validation
from pipeline.probe.run_probe import RunProbe, collapse, described
from pipeline.report.report import Metrics, Report
from pipeline.settings import ConfigError
from pipeline.train.engine import DTYPES, Engine, decay_groups
from pipeline.train.task import Predictor
from shards.secrets import masked


class MaskedPrediction:
    """The loss of predicting what is under masked patches, a `TaskLoss`.

    Args:
        examples: makes them of images.
        masks: of each image in a step.
    """

    def __init__(self, examples: ExampleMaker, masks: int = 1) -> None:
        self._examples, self._masks = examples, masks

    def prepare(self, batch: Batch) -> tuple[Example, Tensor]:
        """Return the example of a micro-batch, and the weights of its views."""
        example = self._examples.example(batch.inputs, batch.keys, self._masks)
        return example, batch.weights.repeat_interleave(self._masks)

    def losses(self, engine: Predictor, prepared: tuple[Example, Tensor]) -> tuple[Tensor, Tensor]:
        """See `TaskLoss`."""
        example, weights = prepared
        predictions = engine.predict(example.inputs, example.mask)
        return self._examples.target.losses(predictions, example.targets, len(weights)), weights


class Pretraining(MaskedPrediction):
    """The `Task` of a pre-training run.

    Args:
        recipe, world, phases: of the run.
        data: its training images.

    Raises:
        ConfigError, ShardError, DataError: the model, its target or the validation images cannot be used.
    """

    name = "pre-training"
    average: float | None = None

    def __init__(self, recipe: Recipe, data: TrainingData, world: World, phases: Phases) -> None:
        self._recipe, self._data, self._world = recipe, data, world
        self.model = build_model(recipe)
        examples = build_examples(recipe, self.model, DTYPES[recipe.engine.precision], world.device)
        super().__init__(examples, recipe.mask.repeats)
        self.identity = self._examples.target.identity
        self.flops = input_flops(recipe, self.model, examples.masker.masked)
        self.next_commands = _next_commands(recipe)
        self.inputs: dict[str, Any] = {}
        self._constants: dict[str, float] = {}  # validation losses of constant predictors, once they are measured
        self._validation = None
        if recipe.data.validation:
            self._validation = Validation(
                recipe.data.validation,
                recipe.data,
                recipe.run,
                recipe.micro_batch(world.size),
                world,
                self._examples,
                phases,
            )
            self.inputs["data.validation (manifest)"] = self._validation.identity
        self._probe, self._unprobed = self._make_probe(phases)
        self.probe_every = recipe.run.probe_every if self._probe else None

    def _make_probe(self, phases: Phases) -> tuple[RunProbe | None, str | None]:
        """Return the probe of the run, if it is to have one, or why it cannot: recipes ask for it before there is data.

        Raises:
            DataError: the samples cannot be decoded here.
        """
        recipe = self._recipe
        if recipe.run.probe_every is None:
            return None, None
        if self._validation is None:
            return None, "data.validation is not set"
        if recipe.data.mode == "stream":
            return None, "labels are not streamed"
        training, validation = cast(ListedData, self._data).manifest, self._validation.manifest
        try:
            return RunProbe(recipe, self.model.encoder, training, validation, self._world, phases), None
        except ConfigError as error:
            return None, str(error)

    def load_initial_weights(self) -> list[str]:
        """See `Task`."""
        note = start_from_init(self.model, self._recipe)
        return [f"model.init: {note}"] if note else []

    def groups(self) -> list[dict[str, Any]]:
        """See `Task`."""
        vectors = [f"encoder.{name}" for name in self.model.view.decayed_vectors]
        return decay_groups(self.model, self._recipe.optim.weight_decay, vectors)

    def before_first_step(self, engine: Engine, done: int, report: Report) -> None:
        """Measure what predictors that learn nothing lose, beside which the validation loss has to be read.

        Of a new run, probe the encoder, too, for the same reason.
        """
        if self._unprobed:
            report.say(f"note: run.probe_every: the encoder is not probed: {self._unprobed}")
        self._measure_constants(engine, done, report)
        if self._probe and not done:
            metrics = self._probe.measure(engine)
            report.say(f"probes of the untrained encoder: {described(metrics)}")
            report.baselines(0, {name: metrics[name] for name in ("probe_linear", "probe_knn")})

    def _measure_constants(self, engine: Engine, done: int, report: Report) -> None:
        if self._validation is None:
            return
        report.say("measuring the validation losses of predictors that learn nothing, to compare with ...")
        losses = self._validation.baselines(
            lambda batches: self._data.batches(0, batches),
            None if done else lambda: self.evaluate(engine, 0, report)["val_loss"],
        )
        report.say("validation loss: " + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
        self._constants = {name: value for name, value in losses.items() if name != "untrained"}

    def evaluate(self, engine: Engine, done: int, report: Report) -> Metrics:
        """Measure the loss on the validation images, if there are any, and show the picture."""
        if self._validation is None:
            return {}
        metrics, pictures = self._validation.measure(engine)
        if pictures is not None:
            report.picture(done, "reconstruction", pictures.sheet)
            if pictures.animation:
                report.animation(done, "animation", pictures.animation)
        if done:
            report.baselines(done, self._constants)
        return metrics

    def probe(self, engine: Engine, done: int, report: Report) -> Metrics:
        """Judge the frozen encoder by labels, and warn where its attention has collapsed."""
        if self._probe is None:
            return {}
        metrics = self._probe.measure(engine)
        report.say(f"probes after step {done}: {described(metrics)}")
        if warning := collapse(metrics):
            report.say(warning)
        return metrics


def _next_commands(recipe: Recipe) -> list[str]:
    """Return the commands that export a complete run's encoder and, with data sets that may have labels, probe it."""
    run, data = recipe.run.dir, recipe.data
    commands = [["python", "scripts/export.py", str(run), f"weights/{run.name}"]]
    if data.shards and data.validation:
        sets = (f"data.shards={data.shards}", f"data.validation={data.validation}")
        commands.append(["deepspeed", "scripts/probe.py", str(run), *map(masked, sets)])
    return [shlex.join(command) for command in commands]
