"""A safe subset of YAML in which all values are text, until the type of a setting makes them a number or a switch.

So a folder may be called `no`, `010`, `2024-05-01` or `1:30`. Files are not trusted: features that make a small file
large (aliases), deep or anything but text, lists and mappings (tags) is refused, and reading takes a moment at most.
"""

from pathlib import Path
from typing import Any

import yaml

_MOST = 2**17  # bytes of a file, characters of a text; no recipe is larger
_DEEPEST = 20  # levels of nested lists and mappings
_NULL = ("", "~", "null", "Null", "NULL")


class PlainYAMLError(ValueError):
    """A text is not valid in this subset. The message is a phrase that says why, and where."""


class _Loader(yaml.BaseLoader):
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _refused(event, f"aliases are not taken: write out what *{event.anchor} stands for")
        if getattr(event, "tag", None) is not None:
            raise _refused(event, f"tags are not taken: leave out {event.tag}")
        if self._depth == _DEEPEST:
            raise _refused(event, f"lists and mappings are nested more than {_DEEPEST} deep")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        """Return the text, or None for an unquoted null."""
        return None if node.style is None and node.value in _NULL else node.value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping, whose keys are all text."""
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refused(key, "a key is not text")
            if key.value in mapping:
                raise _refused(key, f"{key.value} is set for the second time")
            mapping[key.value] = self.construct_object(value, deep)
        return mapping


def parse(text: str) -> Any:
    """Parse YAML to text, lists, mappings and None.

    Raises:
        PlainYAMLError: it is not YAML, or has an alias, a tag, a duplicate key, or too deep nesting; or it is far
            larger than any recipe.
    """
    if len(text) > _MOST:
        raise PlainYAMLError(f"it is larger than {_MOST // 1024} KiB")
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise PlainYAMLError(where + ", ".join(filter(None, (error.context, error.problem)))) from None
    except (yaml.YAMLError, ValueError, OverflowError):  # the latter two: escapes of characters that do not exist
        raise PlainYAMLError("it contains characters that YAML does not allow") from None


def parse_file(path: Path) -> Any:
    """Parse a file in UTF-8, see `parse`.

    Raises:
        OSError: it cannot be read.
        PlainYAMLError: see `parse`; or it is not a file, or not text.
    """
    if path.exists() and not path.is_file():  # opening a pipe would wait
        raise PlainYAMLError("it is not a file")
    with path.open("rb") as file:
        data = file.read(_MOST + 1)
    if len(data) > _MOST:
        raise PlainYAMLError(f"it is larger than {_MOST // 1024} KiB")
    try:
        return parse(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise PlainYAMLError(f"it is not text in UTF-8: byte {error.start} is {data[error.start]:#04x}") from None


def _refused(at: Any, why: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=why, problem_mark=at.start_mark)
