"""Validation of pre-training: the model's loss, the losses of two predictors that learn nothing, and the picture."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from pipeline.config import Recipe
from pipeline.data.batch import Batch
from pipeline.data.errors import no_validation_image
from pipeline.data.loader import Loader
from pipeline.data.request import Request, validation_requests
from pipeline.pretrain.baselines import LOSSES, NAME, read_baselines
from pipeline.pretrain.picture import Picture, draw
from pipeline.targets.objective import Objective
from pipeline.train.engine import Engine
from pipeline.train.phases import Phases
from pipeline.train.world import World
from pipeline.train.writing import Writing, json_lines, replace
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
        micro_batch = recipe.micro_batch(world.size)
        self._manifest = Manifest.load(shards)
        self.identity = self._manifest.identity
        self._samples = min(recipe.data.validation_samples or len(self._manifest), len(self._manifest))
        self._loader = Loader(self._manifest, recipe.data, micro_batch, world.device)
        self._recipe, self._world, self._micro_batch, self._objective = recipe, world, micro_batch, objective
        self._phases = phases
        (self._pictured,) = self._loader.batches(islice(self._requests(), 1))

    def loss(self, engine: Engine) -> tuple[float, int]:
        """Mean loss of the model over the images of all ranks, each counted once, and how many were bad.

        Raises:
            DataError: none can be used.
        """
        total = torch.zeros(2, dtype=torch.float64, device=self._world.device)
        engine.deepspeed.eval()
        with torch.no_grad():
            for batch in self._batches():
                example = self._objective.example(batch.images, batch.mask_keys)
                predictions = engine.predict(example.images, example.mask, example.masked)
                errors = self._objective.target.errors(predictions, example.targets, len(batch.images))
                total += torch.stack([(errors * batch.weights).sum(), batch.weights.sum()])
        engine.deepspeed.train()
        loss, images = self._world.sum(total).tolist()
        if not images:
            raise no_validation_image(self._manifest.root)
        return float(loss / images), self._samples - int(images)

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
            batches = self._watched(training(MEAN_BATCHES))
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
            targets = self._objective.example(batch.images, batch.mask_keys).targets
            zero, constant = (
                (
                    self._objective.target.errors(guess.expand_as(targets), targets, len(batch.images)) * batch.weights
                ).sum()
                for guess in (torch.zeros_like(mean), mean)
            )
            total += torch.stack([zero, constant, batch.weights.sum()])
        zero_loss, mean_loss, images = self._world.sum(total).tolist()
        if not images:
            raise no_validation_image(self._manifest.root)
        return float(zero_loss / images), float(mean_loss / images)

    def picture(self, engine: Engine) -> Picture:
        """What the model makes of the first validation images (on rank 0; the others draw their own)."""
        batch = self._pictured
        example = self._objective.example(batch.images, batch.mask_keys)
        engine.deepspeed.eval()
        with torch.no_grad():
            predictions = engine.predict(example.images, example.mask, example.masked)
        engine.deepspeed.train()
        shown = min(PICTURED, len(batch.images))
        return draw(
            self._objective.target,
            batch.images[:shown],
            example.mask[:shown],
            self._objective.targets(batch.images)[:shown],  # of all images: compiled for so many
            predictions[: shown * self._objective.masked],
        )

    def _requests(self) -> Iterator[Request]:
        return validation_requests(
            self._manifest,
            samples=self._samples,
            micro_batch=self._micro_batch,
            rank=self._world.rank,
            world_size=self._world.size,
            seed=self._recipe.run.seed,
        )

    def _batches(self) -> Iterator[Batch]:
        return self._watched(self._loader.batches(self._requests()))

    def _watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Each batch in a phase of its own, so that it is each that has a deadline."""
        for batch in batches:
            with self._phases("validation"):
                yield batch


def mean_target(objective: Objective, batches: Iterable[Batch], world: World) -> Tensor:
    """Mean target of the masked patches over the batches of all ranks: float32 (numbers a patch,)."""
    total: Tensor | float = 0.0
    images = torch.zeros((), dtype=torch.float64, device=world.device)
    for batch in batches:
        targets = objective.example(batch.images, batch.mask_keys).targets
        weights = batch.weights.repeat_interleave(objective.masked)
        total = total + (targets.double() * weights[:, None]).sum(0)
        images += batch.weights.sum()
    assert isinstance(total, Tensor)
    return (world.sum(total) / (world.sum(images) * objective.masked)).float()
