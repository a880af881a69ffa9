"""The identity of a run, and the checkpoint that it resumes from."""

from typing import Any

from pydantic_core import to_jsonable_python
from torch import nn

from pipeline.build import init_identity
from pipeline.checkpoints import checkpoint
from pipeline.checkpoints.checkpoint import AVERAGE, STATE, Checkpoint, CheckpointError
from pipeline.checkpoints.sealing import Shapes
from pipeline.cluster.world import World
from pipeline.config import TrainingRecipe
from pipeline.files import tell
from pipeline.masks.settings import KINDS_OF_NULL
from pipeline.optimizers import OPTIMIZERS
from pipeline.record import kind_of
from pipeline.settings import FREE, Section
from pipeline.train.state import check_counters
from shards.text import one_line

_MOST_NAMED = 8  # differences between two runs in a message
_IMPLIED = {"mask.kind": KINDS_OF_NULL}  # by setting, the values that mean the same as null


def identity(recipe: TrainingRecipe, data: dict[str, Any]) -> dict[str, Any]:
    """Return everything that decides a run's numbers, the same in all its attempts, as JSON, "section.key" to value."""
    free = may_change(type(recipe))
    settings = {
        f"{section}.{key}": value for section, keys in sorted(recipe.plain().items()) for key, value in keys.items()
    }
    return (
        {"run.seed": recipe.run.seed}
        | data
        | {name: value for name, value in settings.items() if name not in free}
        | {"model.init": init_identity(recipe)}
    )


def may_change(kind: type[TrainingRecipe]) -> frozenset[str]:
    """Return the settings, "section.key", that a run of this kind may change between its attempts.

    They are marked as `Free` where they are declared. In a section that is marked as a whole, all settings are free.
    """
    return frozenset(
        f"{section}.{key}"
        for section, settings in _sections(kind).items()
        for key, setting in settings.model_fields.items()
        if FREE in (*kind.model_fields[section].metadata, *setting.metadata)
    )


def defaults(recipe: TrainingRecipe) -> dict[str, Any]:
    """Return the defaults of all settings that have one, in the format of `identity`.

    A checkpoint of an earlier version lacks settings that were added since. Their defaults keep the earlier behaviour,
    so they stand for the settings of that run.
    """
    return {
        f"{section}.{key}": to_jsonable_python(field.get_default(call_default_factory=True))
        for section, settings in _sections(type(recipe)).items()
        for key, field in settings.model_fields.items()
        if not field.is_required()
    }


def _sections(kind: type[TrainingRecipe]) -> dict[str, type[Section]]:
    """Return the classes of a recipe's sections by name."""
    sections = {}
    for name, field in kind.model_fields.items():
        assert isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        sections[name] = field.annotation
    return sections


def find_checkpoint(
    recipe: TrainingRecipe, world: World, identity: dict[str, Any], model: nn.Module, average: float | None
) -> Checkpoint | None:
    """Return the newest valid checkpoint, the same on all ranks, which check it together; None if there is none yet.

    Args:
        recipe, world: those of the run.
        identity: that of the run, see `identity`.
        model: the model whose parameters must be in the checkpoint.
        average: decay of their moving average, which must be in it too; None: no average.

    Raises:
        CheckpointError: there are some and none is valid, or they belong to another run.
    """
    identity = world.from_first(identity)
    parts = ("weight", *OPTIMIZERS[recipe.optim.name].states, *(() if average is None else (AVERAGE,)))
    trained = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    shapes = {f"{part}/{name}": shape for name, shape in trained.items() for part in parts}

    def check(found: Checkpoint) -> None:
        try:
            check_run(found, recipe, identity)
        except CheckpointError:
            return  # of another run: refused below, not skipped
        check_contents(found, shapes)

    found = checkpoint.newest(recipe.run.dir / "checkpoints", tell, world, check)
    if found:
        check_run(found, recipe, identity)
    return found


def check_run(found: Checkpoint, recipe: TrainingRecipe, identity: dict[str, Any]) -> None:
    """Check that a checkpoint belongs to the run of a recipe.

    Args:
        found: the checkpoint.
        recipe: the recipe.
        identity: that of the run, see `identity`.

    Raises:
        CheckpointError: it does not; the message names the differences.
    """
    kind = kind_of(found.facts.recipe)
    if kind != recipe.run.kind:
        raise CheckpointError(
            f"{found.folder} belongs to another run (run.kind was {kind}, now {recipe.run.kind}): choose another "
            "run.dir"
        )
    check_identity(found, identity, defaults(recipe))


def check_identity(found: Checkpoint, identity: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Check that a checkpoint belongs to the given run.

    Args:
        found: the checkpoint.
        identity: that of the run, see `identity`.
        defaults: the values of settings that a checkpoint of an earlier version lacks.

    Raises:
        CheckpointError: it does not; the message names the differences.
    """
    known = defaults | found.facts.identity

    def comparable(key: str, value: Any) -> Any:
        return None if value in _IMPLIED.get(key, ()) else value

    differing = [
        f"{key} was {known.get(key)}, now {identity.get(key)}"
        for key in sorted(found.facts.identity.keys() | identity.keys())
        if comparable(key, known.get(key)) != comparable(key, identity.get(key))
    ]
    if differing:
        more = f"; and {len(differing) - _MOST_NAMED} more" if len(differing) > _MOST_NAMED else ""
        raise CheckpointError(
            f"{found.folder} belongs to another run ({'; '.join(differing[:_MOST_NAMED])}{more}): set these back, or "
            "choose another run.dir"
        )


def check_contents(found: Checkpoint, shapes: Shapes) -> None:
    """Check that a checkpoint has everything that a run needs, and nothing else, whatever its checksums.

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
    """Return a note for the operator if settings of `engine` differ from those of the checkpoint."""
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
    return [f"{'; '.join(differing)}: rounding differs from here on"] if differing else []
