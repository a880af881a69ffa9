"""Validation of pre-training: the model's loss, the losses of two predictors that learn nothing, and the picture."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from pipeline.config import Recipe
from pipeline.data.batch import Batch
from pipeline.data.errors import no_validation_image
from pipeline.pretrain.baselines import LOSSES, NAME, read_baselines
from pipeline.pretrain.picture import Picture, draw
from pipeline.targets.objective import Example, Objective
from pipeline.train.engine import Engine
from pipeline.train.phases import Phases
from pipeline.train.report import Metrics
from pipeline.train.world import World
from pipeline.train.writing import Writing, json_lines, replace
from pipeline.validation import ValidationImages
from shards.manifest import Manifest

PICTURED = 4  # validation images in the picture
MEAN_BATCHES = 64  # micro-batches of each rank that the mean predictor is measured on


class Validation:
    """The validation images of a run, always the same crops under the same masks. All ranks call everything together.

    Args:
        shards: their folder or URL, as `maskfeat-shards build` wrote it.
        recipe, world, objective, phases: those of the run.
    """

    def __init__(self, shards: str, recipe: Recipe, world: World, objective: Objective, phases: Phases) -> None:
        self._manifest = Manifest.load(shards)
        self.identity = self._manifest.identity
        micro_batch = recipe.micro_batch(world.size)
        self._images = ValidationImages(self._manifest, recipe.data, micro_batch, recipe.run.seed, world, phases)
        self._recipe, self._world, self._objective = recipe, world, objective

    def measure(self, engine: Engine) -> tuple[Metrics, Picture | None]:
        """Return the model's mean loss with the number of bad images, and on rank 0 the picture of the first images.

        Raises:
            DataError: no image can be used.
        """
        sums = torch.zeros(2, dtype=torch.float64, device=self._world.device)
        first: tuple[Batch, Example, Tensor] | None = None
        with engine.evaluating():
            for batch in self._batches():
                example = self._objective.example(batch.inputs, batch.keys)
                predictions = engine.predict(example.images, example.mask, example.masked)
                errors = self._objective.target.errors(predictions, example.targets, len(batch.inputs))
                sums += torch.stack([(errors * batch.weights).sum(), batch.weights.sum()])
                first = first or (batch, example, predictions)
        (loss,), bad = self._images.means(sums[:1], sums[1])
        assert first
        picture = self._draw(*first) if self._world.rank == 0 else None
        return {"val_loss": loss, "val_bad_samples": bad}, picture

    def _draw(self, batch: Batch, example: Example, predictions: Tensor) -> Picture:
        """Show what the model made of the first images of a batch."""
        shown = min(PICTURED, len(batch.inputs))
        return draw(
            self._objective.target,
            batch.inputs[:shown],
            example.mask[:shown],
            self._objective.targets(batch.inputs)[:shown],  # of all images: compiled for so many
            predictions[: shown * self._objective.masked],
        )

    def baselines(
        self, training: Callable[[int], Iterable[Batch]], untrained: Callable[[], float] | None
    ) -> dict[str, float]:
        """Losses of predicting zero, of predicting the mean target and, where it can be had, of the untrained model.

        They are measured once in a run: baselines.json in `run.dir` keeps them, and of which images they are.

        Args:
            training: gives so many batches of training images, to take the mean target of.
            untrained: measures the untrained model, None once it has been trained.
        """
        path = self._recipe.run.dir / NAME
        of = {"validation": self.identity, "samples": self._recipe.data.validation_samples}
        known = self._world.from_first(read_baselines(self._recipe.run.dir))
        if known.get("of") != of:
            batches = self._images.watched(training(MEAN_BATCHES))
            zero, mean = self.constant_losses(mean_target(self._objective, batches, self._world))
            known = {"of": of, "zero": zero, "mean": mean}
            if untrained:
                known["untrained"] = untrained()
            if self._world.rank == 0:
                with Writing()(path):
                    replace(path, json_lines([known]))
        return {name: known[name] for name in LOSSES if name in known}

    def constant_losses(self, mean: Tensor) -> tuple[float, float]:
        """The loss of predicting zero, and of predicting `mean` (numbers a patch,), everywhere.

        Raises:
            DataError: no image can be used.
        """
        total = torch.zeros(3, dtype=torch.float64, device=self._world.device)
        for batch in self._batches():
            targets = self._objective.example(batch.inputs, batch.keys).targets
            zero, constant = (
                (
                    self._objective.target.errors(guess.expand_as(targets), targets, len(batch.inputs)) * batch.weights
                ).sum()
                for guess in (torch.zeros_like(mean), mean)
            )
            total += torch.stack([zero, constant, batch.weights.sum()])
        zero_loss, mean_loss, images = self._world.sum(total).tolist()
        if not images:
            raise no_validation_image(self._manifest.root)
        return float(zero_loss / images), float(mean_loss / images)

    def _batches(self) -> Iterator[Batch]:
        return self._images.batches()


def mean_target(objective: Objective, batches: Iterable[Batch], world: World) -> Tensor:
    """Mean target of the masked patches over the batches of all ranks: float32 (numbers a patch,)."""
    total: Tensor | float = 0.0
    images = torch.zeros((), dtype=torch.float64, device=world.device)
    for batch in batches:
        targets = objective.example(batch.inputs, batch.keys).targets
        weights = batch.weights.repeat_interleave(objective.masked)
        total = total + (targets.double() * weights[:, None]).sum(0)
        images += batch.weights.sum()
    assert isinstance(total, Tensor)
    return (world.sum(total) / (world.sum(images) * objective.masked)).float()
