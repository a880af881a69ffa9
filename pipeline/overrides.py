"""Apply overrides: "section.key=value", or "section.key.option=value" for one option of a mapping."""

import difflib
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from typing_extensions import is_typeddict

from pipeline.plain_yaml import PlainYAMLError, parse
from pipeline.recipe_files import Settings, reason, shown
from pipeline.settings import ConfigError

if TYPE_CHECKING:
    from pipeline.config import TrainingRecipe

Kind = type["TrainingRecipe"]
_MOST_COMPARED = 100  # characters of a mistyped key


def apply(kind: Kind, settings: Settings, override: str) -> None:
    """Apply one override to settings.

    Raises:
        ConfigError: it is not an override, its key is unknown, or its value is not YAML where that is required.
    """
    key, equals, typed = override.partition("=")
    key = key.strip()
    section, dot, name = key.partition(".")
    if not (equals and dot and name):
        raise ConfigError(f"'{shown(key)}' is not an override: write section.key=value, e.g. optim.epochs=100")
    types = annotations(kind)
    if key in types:
        settings[section][name] = _value(key, types[key], typed)
        return
    setting, *options = name.split(".")
    if not options or not all(options) or not _is_mapping(types.get(f"{section}.{setting}")):
        raise ConfigError(unknown(kind, key))
    settings[section][setting] = _with_option(key, settings[section].get(setting), options, _parsed(key, typed))


def _with_option(key: str, mapping: Any, options: list[str], value: Any) -> Any:
    """Return a copy of a mapping in which the option has the value."""
    if mapping is None:
        mapping = {}
    if not isinstance(mapping, dict):
        raise ConfigError(f"{shown(key)} is not an option: {shown(mapping)} has none")
    option, *inner = options
    return mapping | {option: _with_option(key, mapping.get(option), inner, value) if inner else value}


def _value(key: str, annotation: Any, typed: str) -> Any:
    """Convert `typed` for a setting of this type; its model validates the result."""
    text, quoted = _unquoted(typed)
    types = _types(annotation)
    if NoneType in types and not quoted and text in ("", "null"):
        return None
    if not (_is_mapping(annotation) or tuple in types):
        return text
    return _parsed(key, typed)


def _unquoted(typed: str) -> tuple[str, bool]:
    """Return the typed text without spaces and a pair of quotes around it, and whether there were quotes."""
    text = typed.strip()
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" and text[0] not in text[1:-1]
    return (text[1:-1] if quoted else text), quoted


def _parsed(key: str, typed: str) -> Any:
    """Return the typed YAML value."""
    text, _ = _unquoted(typed)
    if "#" in text:
        raise ConfigError(f"{key}={shown(typed)}: a comment (#) is not part of a value: leave it out")
    try:
        return parse(text)
    except PlainYAMLError as error:
        raise ConfigError(f"{key}={shown(typed)} is not a YAML value: {reason(error)}") from None


def _is_mapping(annotation: Any) -> bool:
    return any(is_typeddict(one) or one is dict for one in _types(annotation))


def _types(annotation: Any) -> set[Any]:
    """Return the alternatives of an annotation, without metadata."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _types(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return set().union(*map(_types, get_args(annotation)))
    return {origin or annotation}


def annotations(kind: Kind) -> dict[str, Any]:
    """Return the types of all settings, by section.key."""
    found: dict[str, Any] = {}
    for section, field in kind.model_fields.items():
        settings = field.annotation
        assert isinstance(settings, type) and issubclass(settings, BaseModel)
        found |= {f"{section}.{name}": setting.annotation for name, setting in settings.model_fields.items()}
    return found


def fields_of(annotation: Any) -> list[str]:
    """Return the keys of the settings that a mapping has as its values, such as `data.mixture`; none for others."""
    arguments = get_args(annotation)
    for argument in arguments:
        if isinstance(argument, type) and issubclass(argument, BaseModel):
            return list(argument.model_fields)
    return next((found for argument in arguments if (found := fields_of(argument))), [])


def unknown(kind: Kind, key: str) -> str:
    """Return the message for an unknown key."""
    known = list(annotations(kind))
    near = difflib.get_close_matches(key[:_MOST_COMPARED], known, n=3) or [
        other for other in known if other.startswith(key.split(".")[0] + ".")
    ]
    return f"unknown key {shown(key)}" + (f": did you mean {' or '.join(near)}?" if near else "")
