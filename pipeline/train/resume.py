"""What a run is, and where it goes on from."""

from typing import Any

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


def find_checkpoint(recipe: TrainingRecipe, world: World, identity: dict[str, Any]) -> Checkpoint | None:
    """The newest valid checkpoint, the same on all ranks, who check it together; None if the run has none yet.

    Raises:
        CheckpointError: there are some and none is valid, or they belong to another run.
    """
    found = checkpoint.newest(recipe.run.dir / "checkpoints", tell, world)
    if found:
        checkpoint.check_identity(found, world.from_first(identity))
    return found
