"""Describe the settings of a recipe: allowed values, default and meaning, as they are declared in its sections."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from pipeline.overrides import unknown
from pipeline.settings import ConfigError

if TYPE_CHECKING:
    from pipeline.config import TrainingRecipe

Schema = dict[str, Any]
REQUIRED = "required"
_NOUNS = {"integer": "whole number", "number": "number", "string": "text", "object": "mapping"}
_WRITTEN_AS_POWERS = 10**5  # and what is above


@dataclass(frozen=True)
class Description:
    """The description of a setting.

    Attributes:
        key: "section.key".
        values: the values that it may have.
        default: its default, as YAML, or `REQUIRED`.
        meaning: sentences, in which settings and values stand between backticks.
    """

    key: str
    values: str
    default: str
    meaning: str


@dataclass(frozen=True)
class SectionDescription:
    """The description of a section: its name, a sentence, and its settings."""

    name: str
    meaning: str
    settings: list[Description]


def describe(kind: type["TrainingRecipe"]) -> list[SectionDescription]:
    """Return the descriptions of all sections of a kind of recipe."""
    described = []
    for section, field in kind.model_fields.items():
        settings = field.annotation
        assert isinstance(settings, type) and issubclass(settings, BaseModel)
        schemas = settings.model_json_schema()["properties"]
        rows = [
            Description(
                f"{section}.{name}",
                values_of(schemas[name]),
                REQUIRED if setting.is_required() else _written(setting.get_default(call_default_factory=True)),
                " ".join((setting.description or "").split()),
            )
            for name, setting in settings.model_fields.items()
        ]
        described.append(SectionDescription(section, " ".join((settings.__doc__ or "").split()), rows))
    return described


def chosen(kind: type["TrainingRecipe"], key: str) -> list[SectionDescription]:
    """Return the description of a section by its name, of one setting by its "section.key", or of all by "".

    Raises:
        ConfigError: there is no such section or setting.
    """
    sections = describe(kind)
    if not key:
        return sections
    name, dot, _ = key.partition(".")
    found = [section for section in sections if section.name == name]
    if not dot and not found:
        near = difflib.get_close_matches(key[:100], list(kind.model_fields), n=1)
        raise ConfigError(f"unknown section {key[:100]}: {f'did you mean {near[0]}?' if near else _listed(sections)}")
    if dot:
        settings = [setting for section in found for setting in section.settings if setting.key == key]
        if not settings:
            raise ConfigError(unknown(kind, key))
        return [SectionDescription(name, found[0].meaning, settings)]
    return found


def _listed(sections: Sequence[SectionDescription]) -> str:
    return f"there are {', '.join(section.name for section in sections)}"


def values_of(schema: Schema) -> str:
    """Return the values that a JSON schema allows, in words."""
    if "anyOf" in schema:
        return ", or ".join(map(values_of, schema["anyOf"]))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "object")
    if kind == "null":
        return "null"
    if kind == "boolean":
        return "true, false"
    if kind == "array":
        places = schema.get("prefixItems")
        return f"list of {len(places)}: {values_of(places[0])}" if places else f"list of {values_of(schema['items'])}"
    if schema.get("format") == "path":
        return "path"
    return _NOUNS[kind] + _limits(schema, whole=kind == "integer")


def _limits(schema: Schema, whole: bool) -> str:
    """Return the limits of a number as they follow its noun; nothing if it does not have any."""
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    low, high = schema.get("minimum"), schema.get("maximum")
    if whole and above is not None:
        low, above = above + 1, None
    lower = f" above {_number(above)}" if above is not None else "" if low is None else f" from {_number(low)}"
    if below is not None:
        return f"{lower}, below {_number(below)}"
    if high is None:
        return lower
    return f"{lower}, at most {_number(high)}" if above is not None else f"{lower} to {_number(high)}"


def _number(value: float) -> str:
    """Return a number, a large power of two or ten as such."""
    if value >= _WRITTEN_AS_POWERS and value == int(value):
        whole = int(value)
        if whole & (whole - 1) == 0:
            return f"2^{whole.bit_length() - 1}"
        if str(whole).strip("0") == "1":
            return f"10^{len(str(whole)) - 1}"
    return f"{value:,.6g}"


def _written(default: Any) -> str:
    """Return a default as one line of YAML, its numbers to four digits."""
    plain = _rounded(to_jsonable_python(default))
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
