"""What a run is, and which checkpoint it resumes from."""

from typing import Any

from pydantic_core import to_jsonable_python
from torch import nn

from pipeline.build import init_identity
from pipeline.config import TrainingRecipe
from pipeline.train import checkpoint
from pipeline.train.checkpoint import AVERAGE, PARTS, STATE, Checkpoint, CheckpointError
from pipeline.train.sealing import Shapes
from pipeline.train.state import check_counters
from pipeline.train.world import World
from pipeline.train.writing import tell
from shards.text import one_line

_FREE_SECTIONS = {"run", "engine", "target"}  # a target tells its own identity, whose weights it has too
# Settings of `data` that a run may change between its lives: they decide where bytes come from and how fast.
FREE = {
    "shards",
    "validation",
    "validation_samples",
    "cache",
    "cache_size",
    "deadline",
    "bad_in_a_row",
    "bad_share",
    "read_threads",
    "requests",
    "decode_threads",
}


def identity(recipe: TrainingRecipe, data: dict[str, Any]) -> dict[str, Any]:
    """All that decides a run's numbers: the lives of one run must agree in it. JSON, "section.key" to value."""
    settings = recipe.plain()
    return (
        {"run.seed": recipe.run.seed}
        | data
        | {
            f"{section}.{key}": value
            for section in sorted(settings.keys() - _FREE_SECTIONS)
            for key, value in settings[section].items()
            if key not in FREE
        }
        | {"model.init": init_identity(recipe)}
    )


def defaults(recipe: TrainingRecipe) -> dict[str, Any]:
    """The defaults of all settings that have one, as `identity` writes them.

    A checkpoint of an earlier version lacks the settings that were added since. Their defaults leave everything as it
    was, so they stand for what that run did.
    """
    sections = {name: type(getattr(recipe, name)) for name in type(recipe).model_fields}
    return {
        f"{section}.{key}": to_jsonable_python(field.get_default(call_default_factory=True))
        for section, settings in sections.items()
        for key, field in settings.model_fields.items()
        if not field.is_required()
    }


def find_checkpoint(
    recipe: TrainingRecipe, world: World, identity: dict[str, Any], model: nn.Module, average: float | None
) -> Checkpoint | None:
    """The newest valid checkpoint, the same on all ranks, who check it together; None if the run has none yet.

    Args:
        recipe, world: of the run.
        identity: what the run is.
        model: whose parameters a checkpoint has to hold.
        average: whether it has to hold a moving average of these, too; None: it has not.

    Raises:
        CheckpointError: there are some and none is valid, or they belong to another run.
    """
    identity, known = world.from_first(identity), defaults(recipe)
    parts = PARTS if average is None else (*PARTS, AVERAGE)
    shapes = {f"{part}/{name}": tuple(p.shape) for name, p in model.named_parameters() for part in parts}

    def check(found: Checkpoint) -> None:
        try:
            checkpoint.check_identity(found, identity, known)
        except CheckpointError:
            return  # of another run: refused below, instead of passed over
        check_contents(found, shapes)

    found = checkpoint.newest(recipe.run.dir / "checkpoints", tell, world, check)
    if found:
        checkpoint.check_identity(found, identity, known)
    return found


def check_contents(found: Checkpoint, shapes: Shapes) -> None:
    """Make sure that a checkpoint holds all that a run needs, and nothing else, whatever its checksums say.

    Raises:
        CheckpointError: it does not.
    """
    for name in sorted(found.shapes.keys() | shapes.keys()):
        has, needs = found.shapes.get(name, "missing"), shapes.get(name, "no such tensor")
        if has != needs:
            raise CheckpointError(f"{found.folder}: {name} is {has}, and the model has {needs}")
    try:
        check_counters(found.facts.counters, found.facts.step)
    except ValueError as error:
        raise CheckpointError(f"{found.folder / STATE}: {error}") from None


def changed_engine(found: Checkpoint, recipe: TrainingRecipe) -> list[str]:
    """A note for the operator on settings of `engine` that a run's lives may differ in, and do; none if none does."""
    engine, before = recipe.model_dump(mode="json")["engine"], found.facts.recipe.get("engine")
    if not isinstance(before, dict):
        return []
    known = defaults(recipe)
    was = {key: before.get(key, known[f"engine.{key}"]) for key in engine}
    differing = [
        f"engine.{key} was {one_line(str(was[key])[:40])}, now {value}"
        for key, value in engine.items()
        if was[key] != value
    ]
    return [f"{'; '.join(differing)}: numbers are rounded otherwise from here on"] if differing else []
