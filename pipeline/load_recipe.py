"""Load a recipe's file and overrides into checked settings, which config.py defines."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import ValidationError

from pipeline.overrides import Kind, annotations, apply, fields_of, unknown
from pipeline.recipe_files import RECIPES, read_recipe, shown
from pipeline.record import to_be_given
from pipeline.settings import ConfigError

if TYPE_CHECKING:
    from pipeline.config import TrainingRecipe

AnyRecipe = TypeVar("AnyRecipe", bound="TrainingRecipe")

_MOST_PROBLEMS = 5  # in a message


def load(kind: type[AnyRecipe], recipe: str, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Read a recipe, apply overrides, and validate the result.

    Args:
        kind: the kind of recipe.
        recipe: the name of a file in `kind.folder`, or the path of a YAML file; see `read_recipe`.
        overrides: "section.key=value", or "section.key.option=value" for one option of a mapping; the last one wins.
            Text, a path or a number is taken literally, without surrounding spaces and a pair of quotes; null, or
            nothing, is None where the setting allows it; lists and mappings are YAML.
            `run.dir` is runs/RECIPE, or runs/finetune/RECIPE, by default.

    Raises:
        ConfigError: the recipe does not exist or is not YAML, a key is unknown, a value wrong or a combination invalid.
    """
    files, settings = read_recipe(kind.folder, recipe)
    for section in settings:
        if section not in kind.model_fields:
            raise ConfigError(f"{shown(str(files[0]))}: {_unknown_section(kind, section)}")
    settings = {section: settings.get(section, {}) for section in kind.model_fields}
    for path in files:
        if problem := to_be_given(path, settings, overrides):
            raise ConfigError(problem)
    for override in overrides:
        apply(kind, settings, override)
    settings["run"].setdefault("dir", str(Path("runs") / kind.folder.relative_to(RECIPES) / files[0].stem))
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        problems = error.errors()
        more = f"; and {len(problems) - _MOST_PROBLEMS} more" if len(problems) > _MOST_PROBLEMS else ""
        explained = "; ".join(_explain(kind, problem) for problem in problems[:_MOST_PROBLEMS])
        raise ConfigError(explained + more) from None


def _unknown_section(kind: Kind, section: str) -> str:
    near = difflib.get_close_matches(section[:100], list(kind.model_fields), n=1)
    remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(kind.model_fields)}"
    return f"unknown section {shown(section)}: {remedy}"


def _explain(kind: Kind, problem: Any) -> str:
    location, wrong = problem["loc"], problem["type"]
    key = ".".join(str(part) for part in location if part != "[key]")
    if wrong == "extra_forbidden" and len(location) == 2:
        return unknown(kind, key)
    if wrong == "extra_forbidden" and (fields := fields_of(annotations(kind)[".".join(location[:2])])):
        near = difflib.get_close_matches(str(location[-1])[:100], fields, n=1)
        return f"unknown key {shown(key)}: " + (
            f"did you mean {near[0]}?" if near else f"there are {', '.join(fields)}"
        )
    if wrong == "extra_forbidden":
        known = ", ".join(getattr(annotations(kind)[".".join(location[:2])], "__annotations__", ()))
        if not known:
            return f"unknown key {shown(key)}"
        return f"{shown(key)}={shown(problem['input'])}: not an option that works here, which are {known}"
    if wrong == "missing" and len(location) == 2:
        return f"{key} is missing: set it in the recipe or give {key}=VALUE"
    if wrong == "missing" and isinstance(location[-1], str):
        return f"{shown(key)} is missing: set it"
    if wrong == "value_error" and len(location) < 2:  # of a section or the whole recipe; it names its keys
        return str(problem["ctx"]["error"])
    message = str(problem["ctx"]["error"]) if wrong == "value_error" else problem["msg"]
    off = ", or null for none" if type(None) in get_args(annotations(kind).get(key)) else ""
    return f"{shown(key)}={shown(problem['input'])}: {message[0].lower()}{message[1:]}{off}"
