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
from pipeline.examples import ExampleMaker
from pipeline.pretrain.baselines import LOSSES, NAME, read_baselines
from pipeline.pretrain.picture import Picture, draw
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
        recipe, world, examples, phases: those of the run.
    """

    def __init__(self, shards: str, recipe: Recipe, world: World, examples: ExampleMaker, phases: Phases) -> None:
        micro_batch = recipe.micro_batch(world.size)
        self._manifest = Manifest.load(shards)
        self.identity = self._manifest.identity
        self._samples = min(recipe.data.validation_samples or len(self._manifest), len(self._manifest))
        self._loader = Loader(self._manifest, recipe.data, micro_batch, world.device)
        self._recipe, self._world, self._micro_batch, self._examples = recipe, world, micro_batch, examples
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
                example = self._examples.example(batch.images, batch.mask_keys)
                predictions = engine.predict(example.inputs, example.mask)
                losses = self._examples.target.losses(predictions, example.targets, len(batch.images))
                total += torch.stack([(losses * batch.weights).sum(), batch.weights.sum()])
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
            zero, mean = self.constant_losses(best_constant(self._examples, batches, self._world))
            known = {"of": of, "zero": zero, "mean": mean}
            if untrained:
                known["untrained"] = untrained()
            if self._world.rank == 0:
                with Writing()(path):
                    replace(path, json_lines([known]))
        return {name: known[name] for name in LOSSES if name in known}

    def constant_losses(self, best: Tensor) -> tuple[float, float]:
        """Return the loss of predicting zero, and of predicting `best` (width,), everywhere.

        Raises:
            DataError: no image can be used.
        """
        total = torch.zeros(3, dtype=torch.float64, device=self._world.device)
        for batch in self._batches():
            targets = self._examples.example(batch.images, batch.mask_keys).targets
            zero, constant = (
                (
                    self._examples.target.losses(guess.expand(len(targets), -1), targets, len(batch.images))
                    * batch.weights
                ).sum()
                for guess in (torch.zeros_like(best), best)
            )
            total += torch.stack([zero, constant, batch.weights.sum()])
        zero_loss, mean_loss, images = self._world.sum(total).tolist()
        if not images:
            raise no_validation_image(self._manifest.root)
        return float(zero_loss / images), float(mean_loss / images)

    def picture(self, engine: Engine) -> Picture:
        """What the model makes of the first validation images (on rank 0; the others draw their own)."""
        batch = self._pictured
        example = self._examples.example(batch.images, batch.mask_keys)
        engine.deepspeed.eval()
        with torch.no_grad():
            predictions = engine.predict(example.inputs, example.mask)
        engine.deepspeed.train()
        shown = min(PICTURED, len(batch.images))
        return draw(
            self._examples.target,
            batch.images[:shown],
            example.mask.cells[:shown],
            self._examples.targets(batch.images)[:shown],  # of all images: compiled for so many
            predictions[: shown * self._examples.masker.masked],
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


def best_constant(examples: ExampleMaker, batches: Iterable[Batch], world: World) -> Tensor:
    """Return the best outputs that do not depend on the input, float32 (width,), over the batches of all ranks."""
    target, masked = examples.target, examples.masker.masked
    total = torch.zeros(target.width, dtype=torch.float64, device=world.device)
    images = torch.zeros((), dtype=torch.float64, device=world.device)
    for batch in batches:
        targets = examples.example(batch.images, batch.mask_keys).targets
        total += target.total(targets, batch.weights.repeat_interleave(masked))
        images += batch.weights.sum()
    return target.constant((world.sum(total) / (world.sum(images) * masked)).float())
