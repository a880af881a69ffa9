"""From a recipe's file and what was typed to checked settings. Which settings there are, config.py says."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from typing_extensions import is_typeddict

from pipeline.plain_yaml import PlainYAMLError, parse, parse_file
from pipeline.record import to_be_given
from pipeline.settings import ConfigError
from shards.secrets import masked
from shards.text import one_line

if TYPE_CHECKING:
    from pipeline.config import TrainingRecipe

AnyRecipe = TypeVar("AnyRecipe", bound="TrainingRecipe")
Kind = type["TrainingRecipe"]

RECIPES = Path(__file__).resolve().with_name("recipes")
_MOST_SHOWN = 100  # characters of a value in a message ...
_MOST_SAID = 300  # ... and of another's message
_MOST_PROBLEMS = 5  # in a message


def load(kind: type[AnyRecipe], recipe: str, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Read a recipe, apply overrides, check the whole.

    Args:
        kind: of recipe.
        recipe: the name of a file in `kind.folder`, or the path of a YAML file.
        overrides: "section.key=value"; the last one wins. Text, a path or a number is what was typed, but for spaces
            and a pair of quotes around it; null, or nothing, is None where the setting may be that; lists and
            mappings are YAML. `run.dir` is runs/RECIPE, or runs/finetune/RECIPE, unless given.

    Raises:
        ConfigError: no such recipe, no YAML, an unknown key, a wrong value or an impossible combination.
    """
    path = Path(recipe) if recipe.endswith((".yaml", ".yml")) else kind.folder / f"{recipe}.yaml"
    try:
        settings = read_settings(path)
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in kind.folder.glob("*.yaml")))
        raise ConfigError(f"no recipe '{shown(recipe)}': give one of {known}, or the path of a .yaml file") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{shown(str(path))} cannot be read: {reason(error)}") from None
    for section in settings:
        if section not in kind.model_fields:
            raise ConfigError(f"{shown(str(path))}: {_unknown_section(kind, section)}")
    settings = {section: settings.get(section, {}) for section in kind.model_fields}
    if problem := to_be_given(path, settings, overrides):
        raise ConfigError(problem)
    for override in overrides:
        _apply(kind, settings, override)
    settings["run"].setdefault("dir", str(Path("runs") / kind.folder.relative_to(RECIPES) / path.stem))
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        problems = error.errors()
        more = f"; and {len(problems) - _MOST_PROBLEMS} more" if len(problems) > _MOST_PROBLEMS else ""
        explained = "; ".join(_explain(kind, problem) for problem in problems[:_MOST_PROBLEMS])
        raise ConfigError(explained + more) from None


def read_settings(path: Path) -> dict[str, dict[str, Any]]:
    """What a recipe's file sets, by section and key, unchecked: text, None, lists and mappings.

    Raises:
        ConfigError: it is not YAML, or not of sections.
        OSError: it cannot be read.
    """
    try:
        settings = parse_file(path)
    except PlainYAMLError as error:
        raise ConfigError(f"{shown(str(path))} is not YAML: {reason(error)}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{shown(str(path))} holds no settings")
    settings = {section: {} if keys is None else keys for section, keys in settings.items()}
    for section, keys in settings.items():
        if "." in section:
            outer, _, inner = section.partition(".")
            raise ConfigError(f"{shown(str(path))}: write {shown(outer)}: {{{shown(inner)}: VALUE}}, without the dot")
        if not isinstance(keys, dict):
            raise ConfigError(f"{shown(str(path))}: {shown(section)} is not a section of settings but {shown(keys)}")
    return settings


def shown(value: Any) -> str:
    """The beginning of a value as one line; quotes stand for nothing."""
    text = value if isinstance(value, str) else "null" if value is None else repr(value)
    return _cut(text, _MOST_SHOWN) or "''"


def reason(error: Exception) -> str:
    """What an error says, as one line."""
    return _cut(" ".join(str(error).split()) or type(error).__name__, _MOST_SAID)


def _cut(text: str, length: int) -> str:
    text = masked(text)  # before it is cut, as what is left of a secret need not look like one
    return one_line(text if len(text) <= length else f"{text[:length]}...")


def _apply(kind: Kind, settings: dict[str, dict[str, Any]], override: str) -> None:
    key, equals, typed = override.partition("=")
    key = key.strip()
    section, dot, name = key.partition(".")
    if not (equals and dot and name):
        raise ConfigError(f"'{shown(key)}' is not an override: write section.key=value, e.g. optim.epochs=100")
    annotations = _annotations(kind)
    if key not in annotations:
        raise ConfigError(_unknown(kind, key))
    settings[section][name] = _value(key, annotations[key], typed)


def _value(key: str, annotation: Any, typed: str) -> Any:
    """What a setting of this type takes `typed` for, which its model has yet to check."""
    text = typed.strip()
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" and text[0] not in text[1:-1]
    if quoted:
        text = text[1:-1]
    types = _types(annotation)
    if NoneType in types and not quoted and text in ("", "null"):
        return None
    if not any(is_typeddict(one) or one in (tuple, dict) for one in types):
        return text
    if "#" in text:
        raise ConfigError(f"{key}={shown(typed)}: a comment (#) is not part of a value: leave it out")
    try:
        return parse(text)
    except PlainYAMLError as error:
        raise ConfigError(f"{key}={shown(typed)} is not a YAML value: {reason(error)}") from None


def _types(annotation: Any) -> set[Any]:
    """The alternatives of an annotation, without what is only said about them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _types(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return set().union(*map(_types, get_args(annotation)))
    return {origin or annotation}


def _annotations(kind: Kind) -> dict[str, Any]:
    """The types of all settings, by section.key."""
    found: dict[str, Any] = {}
    for section, field in kind.model_fields.items():
        settings = field.annotation
        assert isinstance(settings, type) and issubclass(settings, BaseModel)
        found |= {f"{section}.{name}": setting.annotation for name, setting in settings.model_fields.items()}
    return found


def _unknown(kind: Kind, key: str) -> str:
    known = list(_annotations(kind))
    near = difflib.get_close_matches(key[:_MOST_SHOWN], known, n=3) or [
        other for other in known if other.startswith(key.split(".")[0] + ".")
    ]
    return f"unknown key {shown(key)}" + (f": did you mean {' or '.join(near)}?" if near else "")


def _unknown_section(kind: Kind, section: str) -> str:
    near = difflib.get_close_matches(section[:_MOST_SHOWN], list(kind.model_fields), n=1)
    remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(kind.model_fields)}"
    return f"unknown section {shown(section)}: {remedy}"


def _explain(kind: Kind, problem: Any) -> str:
    location, wrong = problem["loc"], problem["type"]
    key = ".".join(str(part) for part in location)
    if wrong == "extra_forbidden" and len(location) == 2:
        return _unknown(kind, key)
    if wrong == "extra_forbidden":
        known = ", ".join(getattr(_annotations(kind)[".".join(location[:2])], "__annotations__", ()))
        if not known:
            return f"unknown key {shown(key)}"
        return f"{shown(key)}={shown(problem['input'])}: not an option that works here, which are {known}"
    if wrong == "missing" and len(location) == 2:
        return f"{key} is missing: set it in the recipe or give {key}=VALUE"
    if wrong == "value_error" and len(location) < 2:  # of a section or the whole, and names its keys
        return str(problem["ctx"]["error"])
    message = str(problem["ctx"]["error"]) if wrong == "value_error" else problem["msg"]
    return f"{shown(key)}={shown(problem['input'])}: {message[0].lower()}{message[1:]}"
