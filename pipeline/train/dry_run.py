"""Describe what a run would do, from its recipe and the records of its data sets, without decoding or writing."""

from collections.abc import Iterator
from typing import Any

from pipeline.checkpoints import checkpoint
from pipeline.config import Recipe, TrainingRecipe
from pipeline.data.loader import open_training, open_validation
from pipeline.estimate import costs, state_bytes
from pipeline.train.engine import total_steps
from pipeline.train.hints import hints
from pipeline.train.resume import check_run, identity
from shards.terminal import note
from shards.text import counted


def dry_run(recipe: TrainingRecipe, ranks: int) -> Iterator[tuple[str, str]]:
    """Yield what a run on `ranks` ranks would do, as names and values.

    Raises:
        ConfigError: the batch cannot be divided evenly, or the model cannot be built.
        ShardError, DataError: a data set cannot be used.
        CheckpointError: `run.dir` has another run, or all of its checkpoints are damaged.
    """
    micro_batch = recipe.micro_batch(ranks)
    data, batch, inputs = recipe.data, recipe.optim.batch_size, recipe.inputs
    micro_batches = batch // (micro_batch * ranks)
    known: dict[str, Any] = {}
    if data.mode == "stream":
        yield "data", "a stream of tars, which is not read here"
    else:
        training = open_training(data)
        samples, known = len(training.manifest), training.identity
        yield "data", f"{counted(samples, training.manifest.noun)} in {counted(len(training.manifest.counts), 'shard')}"
        for line in training.notes:
            yield "", line
        for shards, images in ((data.validation, False), (data.validation_images, True)):
            if shards is not None:
                validation = open_validation(shards, data, training.of_both_media, images)
                yield "validation", counted(len(validation), validation.noun)
    yield "batch", f"{batch:,} {inputs}: {counted(ranks, 'rank')} x {micro_batches:,} x {micro_batch:,}"
    if data.mode != "stream":
        steps_per_epoch = samples * recipe.views / batch
        steps = total_steps(recipe.optim, steps_per_epoch)
        yield "schedule", f"{steps:,} steps, {steps_per_epoch:,.1f} an epoch"
        end = min(steps, recipe.run.max_steps or steps)
        for line in hints(recipe.run, recipe.optim, steps_per_epoch, end, data.validation is not None):
            yield "note", line
    if isinstance(recipe, Recipe):
        known |= {"target.kind": recipe.target.kind}
        cost = costs(recipe)
        memory = state_bytes(recipe, cost.size, ranks) + micro_batch * cost.activations
        flops = cost.flops * batch
        work = f"{flops / 1e12:,.2f} TFLOP" if flops >= 1e12 else f"{flops / 1e9:.3g} GFLOP"
        yield "model", f"{cost.size.parameters / 1e6:.1f}M parameters, {work} a step"
        yield "memory", f"about {memory / 1e9:.2f} GB a rank for weights, optimizer and activations, by arithmetic"
    yield "run.dir", _progress(recipe, known)


def _progress(recipe: TrainingRecipe, known: dict[str, Any]) -> str:
    """Return where the run starts, by its identity as far as it is known without building its target."""
    run = recipe.run.dir
    found = checkpoint.newest(run / "checkpoints", report=note)
    if found is None:
        return f"{run}: starts at step 0"
    own = identity(recipe, known)
    listed = recipe.data.mode != "stream"
    unknown = {
        key: value
        for key, value in found.facts.identity.items()
        if key not in own and not (listed and key.startswith("data."))
    }
    check_run(found, recipe, unknown | own)
    return f"{run}: resumes after step {found.facts.step:,}"
