"""Read recipes from files: their locations, summaries, and unchecked settings."""

import difflib
import re
from pathlib import Path
from typing import Any

from pipeline.plain_yaml import PlainYAMLError, parse_file
from pipeline.settings import ConfigError
from shards.secrets import masked
from shards.terminal import say
from shards.text import one_line

RECIPES = Path(__file__).resolve().with_name("recipes")
BASE = "base"  # the key by which a recipe names its base
_DEEPEST = 10  # longest chain of bases
_MOST_SHOWN = 100  # characters of a value in a message ...
_MOST_SAID = 300  # ... and of a quoted message

Settings = dict[str, dict[str, Any]]  # by section and key


def names(folder: Path) -> list[str]:
    """Return the names of the recipes in a folder, in order."""
    return sorted(file.stem for file in folder.glob("*.yaml"))


def list_recipes(folder: Path) -> None:
    """Print the recipes in a folder, each with the first sentence of the comment at the top of its file."""
    width = max(map(len, names(folder)))
    for name in names(folder):
        say(f"{name:<{width}}  {_first_sentence(folder / f'{name}.yaml')}")


def recipe_path(folder: Path, recipe: str) -> Path:
    """Return the file of a recipe: its path, if it is that of a YAML file, or that of its name in `folder`."""
    return Path(recipe) if recipe.endswith((".yaml", ".yml")) else folder / f"{recipe}.yaml"


def read_recipe(folder: Path, recipe: str) -> tuple[list[Path], Settings]:
    """Read a recipe and its bases.

    A base is the name of a recipe in `folder`, or the path of a YAML file, relative to the file that names it. A key
    replaces the same key of the base; lists and mappings are replaced as a whole.

    Returns:
        The files, the recipe's own first, and their combined settings, unchecked: text, None, lists and mappings.

    Raises:
        ConfigError: there is no such recipe, or a file is not one.
    """
    files: list[Path] = []
    settings: Settings = {}
    named, path = recipe, recipe_path(folder, recipe)
    while True:
        if path in files or len(files) == _DEEPEST:
            raise ConfigError(f"{shown(str(files[0]))}: {BASE} is circular, or a chain of more than {_DEEPEST} files")
        try:
            own = read_settings(path)
        except FileNotFoundError:
            raise ConfigError(_unknown_recipe(folder, named, files)) from None
        except (OSError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{shown(str(path))} cannot be read: {reason(error)}") from None
        files.append(path)
        settings = own | {section: own.get(section, {}) | keys for section, keys in settings.items()}
        base = base_of(path)
        if base is None:
            return files, settings
        named = base
        path = path.parent / base if base.endswith((".yaml", ".yml")) else recipe_path(folder, base)


def read_settings(path: Path) -> dict[str, dict[str, Any]]:
    """Read the settings in a recipe's file itself, by section and key, unchecked: text, None, lists and mappings.

    Raises:
        ConfigError: it is not YAML, or does not consist of sections.
        OSError: it cannot be read.
    """
    settings = _parsed(path)
    settings.pop(BASE, None)
    settings = {section: {} if keys is None else keys for section, keys in settings.items()}
    for section, keys in settings.items():
        if "." in section:
            outer, _, inner = section.partition(".")
            raise ConfigError(f"{shown(str(path))}: write {shown(outer)}: {{{shown(inner)}: VALUE}}, without the dot")
        if not isinstance(keys, dict):
            raise ConfigError(f"{shown(str(path))}: {shown(section)} is not a section of settings but {shown(keys)}")
    return settings


def base_of(path: Path) -> str | None:
    """Return the recipe that a file names as its base; None if it does not.

    Raises:
        ConfigError: it is not YAML, or its base is not a name.
        OSError: it cannot be read.
    """
    base = _parsed(path).get(BASE)
    if base is not None and not (isinstance(base, str) and base):
        raise ConfigError(f"{shown(str(path))}: {BASE} is the name of a recipe or the path of a .yaml file")
    return base


def _parsed(path: Path) -> dict[str, Any]:
    try:
        settings = parse_file(path)
    except PlainYAMLError as error:
        raise ConfigError(f"{shown(str(path))} is not YAML: {reason(error)}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{shown(str(path))} has no settings")
    return settings


def _unknown_recipe(folder: Path, recipe: str, files: list[Path]) -> str:
    where = f"{shown(str(files[-1]))}: {BASE}: " if files else ""
    near = difflib.get_close_matches(recipe[:_MOST_SHOWN], names(folder), n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return (
        f"{where}no recipe '{shown(recipe)}': {hint}give one of {', '.join(names(folder))}, or the path of a .yaml file"
    )


def _first_sentence(path: Path) -> str:
    """Return the beginning of the comment at the top of a recipe, up to a full stop or its commands."""
    lines = path.read_text("utf-8").splitlines()
    end = next((place for place, line in enumerate(lines) if not re.match(r"# ?\S", line)), len(lines))
    comment = " ".join(line.removeprefix("#").strip() for line in lines[:end])
    return comment.partition(". ")[0].removesuffix(".") + "."


def shown(value: Any) -> str:
    """Shorten a value to one line, without quotes."""
    text = value if isinstance(value, str) else "null" if value is None else repr(value)
    return _cut(text, _MOST_SHOWN) or "''"


def reason(error: Exception) -> str:
    """Return an error's message as one line."""
    return _cut(" ".join(str(error).split()) or type(error).__name__, _MOST_SAID)


def _cut(text: str, length: int) -> str:
    text = masked(text)  # before it is cut, since the rest of a cut secret may not be recognised
    return one_line(text if len(text) <= length else f"{text[:length]}...")
