"""Validate pre-training: the model's loss, the losses of constant predictors, and the pictures."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pipeline.cluster.phases import Phases
from pipeline.cluster.world import World
from pipeline.data.batch import Batch
from pipeline.data.request import Medium
from pipeline.data.settings import Data
from pipeline.examples import Example, ExampleMaker
from pipeline.files import Writing, json_lines, replace
from pipeline.pretrain.baselines import file_of, read_baselines
from pipeline.pretrain.copying import copied
from pipeline.pretrain.picture import Pictures, draw
from pipeline.report.report import Metrics
from pipeline.sections import Run
from pipeline.targets.target import Regression, Target
from pipeline.train.task import Evaluator
from pipeline.validation import ValidationImages
from shards.manifest import Manifest

PICTURED = 4  # validation images in the picture ...
PICTURED_CLIPS = 2  # ... or clips
MEAN_BATCHES = 64  # micro-batches per rank from which the mean target is estimated


class Validation:
    """The validation images of a run, with fixed crops and masks. All ranks call every method together.

    Args:
        shards: their folder or URL, from `maskfeat-shards build`.
        data, run: settings of the run.
        micro_batch: inputs that a rank computes at once.
        world, examples, phases: those of the run.
        name: for a second data set, a part of the names of its metrics, pictures and baselines; empty for the
            first.

    Attributes:
        manifest: manifest of the images.
        identity: identity of the manifest.
        medium: the medium of the samples.
        name: as above.
        prefix: prefix of the names of its metrics.
        loss_name: a name of its loss for people.
    """

    def __init__(
        self,
        shards: str,
        data: Data,
        run: Run,
        micro_batch: int,
        world: World,
        examples: ExampleMaker,
        phases: Phases,
        name: str = "",
    ) -> None:
        self.manifest, self.name = Manifest.load(shards), name
        self.prefix = f"val_{name}_" if name else "val_"
        self.loss_name = f"validation loss of {name}" if name else "validation loss"
        self.identity = self.manifest.identity
        self.medium: Medium = "image" if self.manifest.video is None else "video"
        single_frames = examples.single_frames is not None
        self._images = ValidationImages(
            self.manifest, data, micro_batch, run.seed, world, phases, single_frames=single_frames
        )
        self._samples, self._folder = data.validation_samples, run.dir
        self._world = world
        self._examples = examples.single_frames if examples.single_frames and self.medium == "image" else examples

    def measure(self, engine: Evaluator) -> tuple[Metrics, Pictures | None]:
        """Return the model's mean loss, scores and number of bad images, and on rank 0 pictures of the first images.

        Raises:
            DataError: no image can be used.
        """
        sums = _Sums(self._examples.target, self._world.device)
        first: tuple[Batch, Example, Tensor] | None = None
        with engine.evaluating():
            for batch in self._images.batches():
                example = self._examples.example(batch.inputs, batch.keys)
                predictions = engine.predict(example.inputs, example.mask)
                sums.add(predictions, example.targets, batch.weights)
                first = first or (batch, example, predictions)
        means, bad = sums.means(self._images)
        assert first
        pictures = self._draw(*first) if self._world.rank == 0 else None
        return {f"{self.prefix}{name}": value for name, value in (means | {"bad_samples": bad}).items()}, pictures

    def _draw(self, batch: Batch, example: Example, predictions: Tensor) -> Pictures:
        """Draw the model's results for the first images, or clips, of a batch."""
        shown = min(PICTURED if batch.inputs.ndim == 4 else PICTURED_CLIPS, len(batch.inputs))
        return draw(
            self._examples.target,
            batch.inputs[:shown],
            example.mask.cells[:shown],
            self._examples.targets(batch.inputs)[:shown],  # of all images, the compiled batch size
            predictions[: shown * self._examples.masker.masked],
            self._examples.predictions,
        )

    def baselines(
        self,
        training: Callable[[int], Iterable[Batch]],
        untrained: Callable[[], float] | None,
        say: Callable[[str], None],
    ) -> dict[str, float]:
        """Return the losses of constant predictors and, if available, of the untrained model.

        The predictors are those of `constants`. The best constant is the mean target, or for classes their frequencies;
        its scores are `mean_NAME`.

        They are measured once per run: baselines.json in `run.dir` stores them, and which images they are of; those of
        a second data set are in baselines-NAME.json.

        Args:
            training: returns this many batches of training images, for the mean target.
            untrained: measures the untrained model, None once it has been trained.
            say: prints a line for the operator.
        """
        file = file_of(self.name)
        of = {"validation": self.identity, "samples": self._images.samples}
        by_limit = of | {"samples": self._samples}  # as earlier versions wrote it
        known = self._world.from_first(read_baselines(self._folder, file))
        if known.get("of") not in (of, by_limit):
            say(f"measuring the {self.loss_name} of predictors that learn nothing, to compare with ...")
            batches = self._images.watched(training(MEAN_BATCHES))
            known = {"of": of} | self.constants(best_constant(self._examples, batches, self._world))
            if untrained:
                known["untrained"] = untrained()
            if self._world.rank == 0:
                with Writing()(self._folder / file):
                    replace(self._folder / file, json_lines([known]))
        return {name: value for name, value in known.items() if name != "of"}

    def constants(self, best: Tensor) -> dict[str, float]:
        """Return the loss of predicting zero, and loss and scores of predicting `best`, (width,), everywhere.

        For clips with numeric targets, also return the loss of copying the nearest visible frame, see `copied`.

        Raises:
            DataError: no image can be used.
        """
        target, layout = self._examples.target, self._examples.predictions.layout
        names = ["zero", "mean"] + (["copy"] if layout.frames > 1 and isinstance(target, Regression) else [])
        sums = {name: _Sums(target, self._world.device) for name in names}
        for batch in self._images.batches():
            example = self._examples.example(batch.inputs, batch.keys)
            masked = len(example.targets)
            sums["zero"].add(torch.zeros_like(best).expand(masked, -1), example.targets, batch.weights)
            sums["mean"].add(best.expand(masked, -1), example.targets, batch.weights)
            if "copy" in sums:
                copies = copied(self._examples.targets(batch.inputs), example.mask, layout, best)
                sums["copy"].add(copies, example.targets, batch.weights)
        means = {name: of.means(self._images)[0] for name, of in sums.items()}
        scores = {f"mean_{name}": value for name, value in means["mean"].items() if name != "loss"}
        return {name: of["loss"] for name, of in means.items()} | scores


class _Sums:
    """Sums of the loss and the scores of a target over images, by name, on the device."""

    def __init__(self, target: Target, device: torch.device) -> None:
        self._target = target
        self._sums: dict[str, Tensor] = {}
        self._images = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Add a batch: outputs (masked, width), its targets, and the weights of its images (n,)."""
        images = len(weights)
        values = {"loss": self._target.losses(outputs, targets, images)} | self._target.scores(outputs, targets, images)
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + (value * weights).sum().double()
        self._images += weights.sum()

    def means(self, images: ValidationImages) -> tuple[dict[str, float], int]:
        """See `ValidationImages.means`."""
        means, bad = images.means(torch.stack(list(self._sums.values())), self._images)
        return dict(zip(self._sums, means, strict=True)), bad


def best_constant(examples: ExampleMaker, batches: Iterable[Batch], world: World) -> Tensor:
    """Return the best outputs that do not depend on the input, float32 (width,), over the batches of all ranks."""
    target = examples.target
    total = torch.zeros(target.width, dtype=torch.float64, device=world.device)
    patches = torch.zeros((), dtype=torch.float64, device=world.device)
    for batch in batches:
        maker = examples.of(batch.inputs)
        masked = maker.masker.masked
        targets = maker.example(batch.inputs, batch.keys).targets
        total += target.total(targets, batch.weights.repeat_interleave(masked))
        patches += batch.weights.sum() * masked
    return target.constant((world.sum(total) / world.sum(patches)).float())
