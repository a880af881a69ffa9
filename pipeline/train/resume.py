"""What a run is, and which checkpoint it resumes from."""

from typing import Any

from pydantic_core import to_jsonable_python

from pipeline.build import init_identity
from pipeline.config import TrainingRecipe
from pipeline.train import checkpoint
from pipeline.train.checkpoint import Checkpoint
from pipeline.train.world import World
from pipeline.train.writing import tell

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


def find_checkpoint(recipe: TrainingRecipe, world: World, identity: dict[str, Any]) -> Checkpoint | None:
    """The newest valid checkpoint, the same on all ranks, who check it together; None if the run has none yet.

    Raises:
        CheckpointError: there are some and none is valid, or they belong to another run.
    """
    found = checkpoint.newest(recipe.run.dir / "checkpoints", tell, world)
    if found:
        checkpoint.check_identity(found, world.from_first(identity), defaults(recipe))
    return found
