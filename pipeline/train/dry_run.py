"""Describe what a run would do, from its recipe and the records of its data sets, without decoding or writing."""

from collections.abc import Iterator

from pipeline.checkpoints import checkpoint
from pipeline.checkpoints.checkpoint import CheckpointError
from pipeline.config import Recipe, TrainingRecipe
from pipeline.data.data_sets import DataSets
from pipeline.estimate import costs, state_bytes
from pipeline.train.engine import total_steps
from pipeline.train.hints import hints
from shards.manifest import Manifest
from shards.text import counted


def dry_run(recipe: TrainingRecipe, ranks: int) -> Iterator[tuple[str, str]]:
    """Yield what a run on `ranks` ranks would do, as names and values.

    Raises:
        ConfigError: the batch cannot be divided evenly, or the model cannot be built.
        ShardError, DataError: a data set cannot be used.
    """
    micro_batch = recipe.micro_batch(ranks)
    batch, inputs = recipe.optim.batch_size, recipe.inputs
    micro_batches = batch // (micro_batch * ranks)
    if recipe.data.mode == "stream":
        yield "data", "a stream of tars, which is not read here"
    else:
        training = DataSets(recipe.data)
        samples = len(training.manifest)
        yield "data", f"{counted(samples, training.manifest.noun)} in {counted(len(training.manifest.counts), 'shard')}"
        for line in training.notes:
            yield "", line
    if recipe.data.validation:
        validation = Manifest.load(recipe.data.validation)
        yield "validation", counted(len(validation), validation.noun)
    yield "batch", f"{batch:,} {inputs}: {counted(ranks, 'rank')} x {micro_batches:,} x {micro_batch:,}"
    if recipe.data.mode != "stream":
        steps_per_epoch = samples * recipe.views / batch
        steps = total_steps(recipe.optim, steps_per_epoch)
        yield "schedule", f"{steps:,} steps, {steps_per_epoch:,.1f} an epoch"
        end = min(steps, recipe.run.max_steps or steps)
        for line in hints(recipe.run, recipe.optim, steps_per_epoch, end, recipe.data.validation is not None):
            yield "note", line
    if isinstance(recipe, Recipe):
        cost = costs(recipe)
        memory = state_bytes(recipe, cost.size, ranks) + micro_batch * cost.activations
        yield "model", f"{cost.size.parameters / 1e6:.1f}M parameters, {cost.flops * batch / 1e12:,.2f} TFLOP a step"
        yield "memory", f"about {memory / 1e9:.2f} GB a rank for weights, optimizer and activations, by arithmetic"
    yield "run.dir", _progress(recipe)


def _progress(recipe: TrainingRecipe) -> str:
    run = recipe.run.dir
    try:
        return f"{run}: resumes after step {checkpoint.chosen(run, None).facts.step:,}"
    except CheckpointError:
        return f"{run}: starts at step 0"
