"""Find the visual words of a data set, in one pass over its shards."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import torch
from torch import Tensor

from model.layout import mask_of_all
from pipeline.build import build_model, predictions_of
from pipeline.cluster.world import World
from pipeline.config import Recipe
from pipeline.data.batch import Batch
from pipeline.data.errors import DataError
from pipeline.data.exact import ExactData
from pipeline.files import output
from pipeline.progress_bar import tracked
from pipeline.settings import ConfigError
from pipeline.targets.frames import described_frames
from pipeline.targets.registry import build_target
from pipeline.targets.target import Computing, TargetError
from pipeline.targets.tokens.kmeans import KMeans, sums_by_word
from pipeline.targets.tokens.words import is_words, nearest, write_words
from pipeline.train.engine import DTYPES
from pipeline.train.setup import micro_batches, part_of

Describe = Callable[[Batch], Tensor]

SEEDED_BY = 64  # most vectors per word that k-means++ chooses from
JUDGED = 64  # batches on which usage and entropy are measured afterwards


@dataclass(frozen=True)
class Found:
    """The fit of words to the batches on which they are evaluated.

    Attributes:
        used: words that are the nearest of some patch.
        entropy: entropy of their frequencies in bits; log2(words) if all are equally frequent.
        explained: share of the variance of the patches that their words explain.
        restarts: number of restarts of unused words.
    """

    used: int
    entropy: float
    explained: float
    restarts: int


def find_words(recipe: Recipe, words: int, out: Path, world: World) -> Found:
    """Find words and write them to `out`. All ranks call this together.

    Args:
        recipe: provides the target to cluster, the data, the seed, the model's patches, the batch size, and the
            precision of a teacher.
        words: number of words.
        out: folder to write.

    Raises:
        ConfigError: the source cannot be used, words cannot be found, or `out` cannot be written.
        ShardError, DataError: the data set cannot be used.
    """
    if is_words(out):
        raise ConfigError(f"{out} has words already: choose another folder, or remove it")
    if recipe.data.mode == "stream":
        raise ConfigError("words are found in a data set with a manifest: index the tars, and leave data.mode out")
    if problem := world.from_first(_not_writable(out) if world.rank == 0 else ""):
        raise ConfigError(problem)
    with torch.device("meta"):
        predictions = predictions_of(build_model(recipe, 1).view)
    try:
        computing = Computing(DTYPES[recipe.engine.precision], world.device)
        target = build_target(recipe.target, predictions, computing)
    except (TargetError, ValueError) as error:
        raise ConfigError(str(error)) from None

    def describe(batch: Batch) -> Tensor:
        """Compute the target of every patch in the good images of a batch: float32 (n, width)."""
        good = batch.inputs[batch.weights > 0]
        if not len(good):
            bad = f"all {len(batch.weights)} {recipe.data.inputs}"
            raise DataError(f"{bad} of a batch are bad: run `maskfeat-shards verify`")
        frames = described_frames(good, predictions)
        return target.describe(frames, mask_of_all(len(frames), predictions.of_a_frame.layout, good.device)).float()

    data = ExactData(recipe.data, part_of(recipe, world))
    try:
        centroids, found = _searched(data, describe, recipe, words, world)
    finally:
        data.close()
    if world.rank == 0:
        how = {"words": words, "found in": data.manifest.identity, "seed": recipe.run.seed, **vars(found)}
        with output(out):
            write_words(out, centroids, recipe.target, target.identity, how)
    world.barrier()
    return found


def _not_writable(out: Path) -> str:
    """Create a folder, and return why it cannot be written, before hours are spent; empty if it can."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            return ""
    except OSError as error:
        return f"{out} cannot be written ({error.strerror}): choose another folder"


def _searched(data: ExactData, describe: Describe, recipe: Recipe, words: int, world: World) -> tuple[Tensor, Found]:
    """Return the centroids, float32 (words, width), after one pass, and how well they fit its first batches."""
    inputs = data.samples * recipe.views
    batches = inputs // recipe.optim.batch_size * micro_batches(recipe, world)
    if not batches:
        raise ConfigError(
            f"{inputs:,} {recipe.data.inputs} are not a whole batch: set optim.batch_size to at most that many"
        )
    means: KMeans | None = None
    passing = tracked(data.batches(0, batches), "words", batches, hidden=world.rank > 0)
    for batch in passing:
        vectors = describe(batch)
        if means is None:
            means = _started(vectors, words, recipe.run.seed, world)
        means.update(vectors)
    assert means is not None
    total = torch.zeros(words, means.centroids.shape[1] + 1, dtype=torch.float64, device=world.device)
    squares = torch.zeros(2, dtype=torch.float64, device=world.device)
    for batch in data.batches(0, min(batches, JUDGED * micro_batches(recipe, world))):
        vectors = describe(batch)
        ids, distances = nearest(vectors, means.centroids)
        total += sums_by_word(vectors, ids, words)
        squares += torch.stack([distances.double().sum(), vectors.double().square().sum()])
    return means.centroids, _judged(world.sum(total), world.sum(squares), means.restarts)


def _started(vectors: Tensor, words: int, seed: int, world: World) -> KMeans:
    sample = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))[: words * SEEDED_BY]
    first = world.from_first(vectors[sample.to(vectors.device)].cpu()).to(vectors.device)
    try:
        return KMeans(first, words, seed, world.sum, world.from_first)
    except ValueError as error:
        raise ConfigError(f"{error}: ask for fewer words, or set a larger optim.batch_size") from None


def _judged(total: Tensor, squares: Tensor, restarts: int) -> Found:
    counts = total[:, -1]
    share = counts / counts.sum()
    mean = total[:, :-1].sum(0) / counts.sum()
    left, whole = squares.tolist()
    variance = whole - float(counts.sum() * mean.square().sum())
    return Found(
        used=int((counts > 0).sum()),
        entropy=float(torch.special.entr(share).sum() / math.log(2)),
        explained=1 - left / variance if variance > 0 else 0.0,
        restarts=restarts,
    )
