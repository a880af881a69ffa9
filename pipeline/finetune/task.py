"""The fine-tuning task: from pixels and labels to the classification loss.

Recipe: Wei et al., "Masked Feature Prediction for Self-Supervised Visual Pre-Training", CVPR 2022, after Bao et al.,
"BEiT", ICLR 2022: layer-wise learning rates, RandAugment, erasing, mixup and CutMix, smoothed labels.
"""

import hashlib
import json
import shlex
from typing import Any

import numpy as np
import torch
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor
from torch.nn import functional as F

from pipeline.build import start_from_init
from pipeline.checkpoints.checkpoint import AVERAGE
from pipeline.cluster.phases import Phases
from pipeline.cluster.world import World
from pipeline.data.batch import Batch
from pipeline.data.labels import labels_of
from pipeline.data.training_data import ListedData
from pipeline.device import to_device
from pipeline.files import Writing, replace
from pipeline.finetune.build import CLASSES, build_classifier, layer_groups
from pipeline.finetune.config import FinetuneRecipe
from pipeline.finetune.erasing import random_erasing
from pipeline.finetune.evaluate import PICTURED, Validation, as_csv, draw_table
from pipeline.finetune.randaugment import rand_augment
from pipeline.metrics import OF_AVERAGE
from pipeline.pixels import normalise
from pipeline.report.report import Metrics, Report
from pipeline.settings import ConfigError
from pipeline.train.engine import DTYPES, Engine
from pipeline.train.state import averaged
from pipeline.train.task import Predictor
from shards.manifest import Manifest


class Finetuning:
    """The `Task` of a fine-tuning run.

    Args:
        recipe, world, phases: those of the run.
        data: its training data.

    Raises:
        ConfigError, ShardError: the model, the labels or the validation images cannot be used.
    """

    name = "fine-tuning"
    probe_every: int | None = None

    def __init__(self, recipe: FinetuneRecipe, data: ListedData, world: World, phases: Phases) -> None:
        self._recipe, self._world, self.average = recipe, world, recipe.optim.average
        training, validation = data.manifest, Manifest.load(recipe.data.validation)
        labels, validation_labels = labels_of(training, validation)
        self._labels, self.names, self._noun = torch.from_numpy(labels), training.classes, validation.noun
        self.model = build_classifier(recipe, len(self.names))
        listed = hashlib.sha256("\n".join(self.names).encode()).hexdigest()
        self.identity: dict[str, Any] = {"classes": f"{len(self.names)}, sha256 {listed[:16]}"}
        self.inputs: dict[str, Any] = {"data.validation (manifest)": validation.identity}
        head = sum(parameter.numel() for parameter in self.model.view.head.parameters())
        self.flops = 6 * (self.model.view.macs() + head)
        run = recipe.run.dir
        self.next_commands = [shlex.join(["maskfeat", "export", str(run), f"weights/{run.name}"])]
        self._validation = Validation(
            validation,
            validation_labels,
            len(self.names),
            recipe.data,
            recipe.run,
            recipe.model.statistics,
            recipe.micro_batch(world.size),
            world,
            phases,
        )
        augment = recipe.augment
        self._writing = Writing()
        self._mixup = None
        if augment.mixup or augment.cutmix:
            samples = recipe.micro_batch(world.size) // recipe.data.repeats
            if samples % 2:  # the middle one would be mixed with itself
                raise ConfigError(
                    f"mixup pairs the {training.noun}s of a micro-batch, and {samples} are an odd number: "
                    "change optim.batch_size or engine.micro_batch, or set augment.mixup and augment.cutmix to 0"
                )
            self._mixup = Mixup(
                augment.mixup,
                augment.cutmix,
                switch_prob=augment.cutmix_share,
                label_smoothing=augment.smoothing,
                num_classes=len(self.names),
            )

    def load_initial_weights(self) -> list[str]:
        """See `Task`."""
        if self._recipe.model.init is None:
            return ["model.init is not set: training from scratch"]
        note = start_from_init(self.model, self._recipe)
        return [f"model.init: {note}"] if note else []

    def groups(self) -> list[dict[str, Any]]:
        """See `Task`."""
        return layer_groups(self.model, self._recipe.optim)

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return images, or clips, in the model's dtype, shares of the classes (n, classes), and weights (n,)."""
        augment, keys = self._recipe.augment, batch.request.keys
        images, weights = batch.inputs, batch.weights
        if augment.randaugment is not None:
            images = rand_augment(images, keys, augment.randaugment)
        pixels = normalise(images, DTYPES[self._recipe.engine.precision], self._recipe.model.statistics)
        if augment.erasing:
            pixels = random_erasing(pixels, keys, augment.erasing)
        labels = to_device(self._labels[torch.from_numpy(batch.request.input_ids)], self._world.device)
        if self._mixup is None:
            return pixels, mixup_target(labels, len(self.names), smoothing=augment.smoothing), weights
        np.random.seed(torch.initial_seed() % 2**32)  # timm draws from NumPy's generator; the loop seeds torch's
        shape = pixels.shape  # for clips, timm would cut boxes in frames and rows, not in rows and columns
        pixels, shares = self._mixup(pixels.flatten(1, -3), labels)
        weights = weights * weights.flip(0)  # an image mixed with a bad one gets weight 0, too
        return pixels.view(shape), shares, weights

    def losses(self, engine: Predictor, prepared: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the cross entropy of each image, and its weight."""
        pixels, shares, weights = prepared
        return F.cross_entropy(engine.predict(pixels).float(), shares.float(), reduction="none"), weights

    def before_first_step(self, engine: Engine, done: int, report: Report) -> None:
        """Report the accuracy to compare with, and write the names of the classes."""
        if self._world.rank == 0:
            self._write(CLASSES, f"{json.dumps(self.names, indent=0)}\n".encode())
        report.say(
            f"{len(self.names)} classes; predicting the most frequent one is right for {self._validation.chance():.1%} "
            f"of the validation {self._noun}s"
        )

    def evaluate(self, engine: Engine, done: int, report: Report) -> Metrics:
        """Measure the weights and, if there is one, their average; report the latter's confusion table in this case."""
        metrics, confusion = self._validation.measure(engine)
        if AVERAGE in engine.states:
            with averaged(engine):
                of_average, confusion = self._validation.measure(engine)
            metrics |= {f"{name}{OF_AVERAGE}": of_average[name] for name in ("val_loss", "val_top1", "val_top5")}
        if self._world.rank == 0:
            self._write("confusion.csv", as_csv(confusion, self.names))
            if len(self.names) <= PICTURED:
                report.picture(done, "confusion", draw_table(confusion, self.names))
        return metrics

    def probe(self, engine: Engine, done: int, report: Report) -> Metrics:
        """Measure nothing: accuracy is already validated."""
        return {}

    def _write(self, name: str, content: bytes) -> None:
        path = self._recipe.run.dir / name
        with self._writing(path):
            replace(path, content)
