"""The MaskFeat task: from pixels to the loss of predicting masked patches."""

import shlex
from functools import partial
from typing import Any, cast

from torch import Tensor

from pipeline.augmentation import Augment
from pipeline.build import build_examples, build_model, start_from_init
from pipeline.cluster.phases import Phases
from pipeline.cluster.world import World
from pipeline.config import Recipe
from pipeline.data.batch import Batch
from pipeline.data.data_sets import check_are_images, check_validation_images
from pipeline.data.training_data import ListedData, TrainingData
from pipeline.estimate import input_flops
from pipeline.examples import Example, ExampleMaker
from pipeline.pretrain.baselines import IMAGES
from pipeline.pretrain.evaluate import Validation
from pipeline.probe.run_probe import RunProbe, collapse, described
from pipeline.report.report import Metrics, Report
from pipeline.settings import ConfigError
from pipeline.train.engine import DTYPES, Engine, decay_groups
from pipeline.train.task import Predictor
from shards.secrets import masked


class MaskedPrediction:
    """The loss of predicting masked patches, a `TaskLoss`.

    Args:
        examples: makes examples from images.
        masks: masks per image in a step.
        augment: how images are varied; None: not at all.
    """

    def __init__(self, examples: ExampleMaker, masks: int = 1, augment: Augment | None = None) -> None:
        self._examples, self._masks, self._augment = examples, masks, augment or Augment()

    def prepare(self, batch: Batch) -> tuple[Example, Tensor]:
        """Return the example of a micro-batch, and the weights of its views."""
        example = self._examples.training_example(batch.inputs, batch.keys, self._masks, self._augment)
        return example, batch.weights.repeat_interleave(self._masks)

    def losses(self, engine: Predictor, prepared: tuple[Example, Tensor]) -> tuple[Tensor, Tensor]:
        """See `TaskLoss`."""
        example, weights = prepared
        predictions = engine.predict(example.inputs, example.mask)
        return self._examples.target.losses(predictions, example.targets, len(weights)), weights


class Pretraining(MaskedPrediction):
    """The `Task` of a pre-training run.

    Args:
        recipe, world, phases: those of the run.
        data: its training data.

    Raises:
        ConfigError, ShardError, DataError: the model, its target or the validation images cannot be used.
    """

    name = "pre-training"
    average: float | None = None

    def __init__(self, recipe: Recipe, data: TrainingData, world: World, phases: Phases) -> None:
        self._recipe, self._data, self._world = recipe, data, world
        self.model = build_model(recipe)
        of_both_media = len(data.media) > 1
        dtype = DTYPES[recipe.engine.precision]
        examples = build_examples(recipe, self.model, dtype, world.device, single_frames=of_both_media)
        super().__init__(examples, recipe.mask.repeats, recipe.augment)
        self.identity = self._examples.target.identity
        self.flops = input_flops(recipe, self.model, examples.masker.masked)
        self.next_commands = _next_commands(recipe)
        self.inputs: dict[str, Any] = {}
        self._constants: dict[str, float] = {}  # validation losses of constant predictors, once measured
        self._validations = self._open_validations(phases)
        self._probe, self._unprobed = self._make_probe(phases)
        self.probe_every = recipe.run.probe_every if self._probe else None

    def _open_validations(self, phases: Phases) -> list[Validation]:
        """Return the validation sets of the run; a run on images and videos has two."""
        recipe, world, found = self._recipe, self._world, list[Validation]()
        check_validation_images(recipe.data, len(self._data.media) > 1)
        for setting, shards, name in (
            ("validation", recipe.data.validation, ""),
            ("validation_images", recipe.data.validation_images, IMAGES),
        ):
            if shards is None:
                continue
            micro_batch = recipe.micro_batch(world.size)
            made = Validation(shards, recipe.data, recipe.run, micro_batch, world, self._examples, phases, name)
            if name:
                check_are_images(made.manifest)
            self.inputs[f"data.{setting} (manifest)"] = made.identity
            found.append(made)
        return found

    def _make_probe(self, phases: Phases) -> tuple[RunProbe | None, str | None]:
        """Return the probe of the run, if requested, or why there is none: recipes may request it before there is data.

        Raises:
            DataError: the samples cannot be decoded here.
        """
        recipe = self._recipe
        if recipe.run.probe_every is None:
            return None, None
        if recipe.data.validation is None:
            return None, "data.validation is not set"
        validation = self._validations[0]
        if len(self._data.media) > 1 and validation.medium != "video":
            return None, "of a mixture of images and videos, it is probed on the videos: set data.validation to videos"
        if recipe.data.mode == "stream":
            return None, "labels are not streamed"
        data = cast(ListedData, self._data)
        training = data.of_medium(validation.medium) if len(data.media) > 1 else data.manifest
        if recipe.data.mixture is not None and not training.classes:
            return None, "the data sets of data.mixture have no labels, or different classes"
        try:
            return RunProbe(recipe, self.model.encoder, training, validation.manifest, self._world, phases), None
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
        """Measure the losses of constant predictors, to compare the validation loss with.

        For a new run, also probe the untrained encoder, for the same reason.
        """
        if self._unprobed:
            report.say(f"note: run.probe_every: the encoder is not probed: {self._unprobed}")
        self._measure_constants(engine, done, report)
        if not done and (metrics := self._measure_probe("of the untrained encoder", engine, report)):
            report.baselines(0, {name: metrics[name] for name in ("probe_linear", "probe_knn")})

    def _measure_constants(self, engine: Engine, done: int, report: Report) -> None:
        for validation in self._validations:
            medium = validation.medium if validation.medium in self._data.media else None
            losses = validation.baselines(
                partial(self._data.batches, 0, medium=medium),
                None if done else partial(self._loss, validation, engine, report),
                report.say,
            )
            report.say(f"{validation.loss_name}: " + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
            prefix = f"{validation.name}_" if validation.name else ""
            self._constants |= {f"{prefix}{name}": loss for name, loss in losses.items() if name != "untrained"}

    def _loss(self, validation: Validation, engine: Engine, report: Report) -> float:
        """Return the loss of the untrained model, and draw its predictions."""
        return self._evaluate_on(validation, engine, 0, report)[f"{validation.prefix}loss"]

    def evaluate(self, engine: Engine, done: int, report: Report) -> Metrics:
        """Measure the loss on the validation images, if there are any, and draw the pictures."""
        metrics: Metrics = {}
        for validation in self._validations:
            metrics |= self._evaluate_on(validation, engine, done, report)
        if self._validations:
            report.baselines(done, self._constants)
        return metrics

    def _evaluate_on(self, validation: Validation, engine: Engine, done: int, report: Report) -> Metrics:
        metrics, pictures = validation.measure(engine)
        if pictures is not None:
            suffix = f"-{validation.name}" if validation.name else ""
            report.picture(done, f"reconstruction{suffix}", pictures.sheet)
            if pictures.animation:
                report.animation(done, f"animation{suffix}", pictures.animation)
        return metrics

    def probe(self, engine: Engine, done: int, report: Report) -> Metrics:
        """Evaluate the frozen encoder by labels, and warn where its attention has collapsed."""
        metrics = self._measure_probe(f"after step {done}", engine, report)
        if metrics and (warning := collapse(metrics)):
            report.say(warning)
        return metrics

    def _measure_probe(self, when: str, engine: Engine, report: Report) -> Metrics:
        """Return the results of the probe; none where there is no probe, or too few samples are good."""
        if self._probe is None:
            return {}
        try:
            metrics = self._probe.measure(engine)
        except ConfigError as error:
            report.say(f"note: run.probe_every: no probes {when}: {error}")
            return {}
        report.say(f"probes {when}: {described(metrics)}")
        return metrics


def _next_commands(recipe: Recipe) -> list[str]:
    """Return the commands that export a complete run's encoder and, with data sets that may have labels, probe it."""
    run, data = recipe.run.dir, recipe.data
    commands = [["maskfeat", "export", str(run), f"weights/{run.name}"]]
    if data.shards and data.validation and data.mode != "stream":
        sets = (f"data.shards={data.shards}", f"data.validation={data.validation}")
        commands.append(["maskfeat", "probe", str(run), *map(masked, sets)])
    return [shlex.join(command) for command in commands]
