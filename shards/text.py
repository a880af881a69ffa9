"""Convert names and messages to text that a file format or a terminal accepts."""

import json
import math
import os

_SHOWN = 100  # most characters of a value in a message


def printable(path: str) -> str:
    """Convert a file name of this locale to valid Unicode: bytes that are not UTF-8 become backslash escapes."""
    return escaped(portable(path))


def escaped(text: str) -> str:
    """Convert a name that was read as UTF-8, from a tar for instance, to valid Unicode. Raises UnicodeEncodeError."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def one_line(text: str) -> str:
    r"""Return `text` as one line without terminal control sequences.

    Control characters, line breaks of every kind, marks that reorder text and lone surrogates become escapes such as
    `\n`, `\x1b` and `\u2028`. Messages quote names from tars, folders and tables that are not trusted.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def native(text: str) -> str:
    """Return the file name in this locale for UTF-8 `text`, so that tables mean the same files in every locale."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def portable(name: str) -> str:
    """Return a file name as UTF-8 text, the same in every locale: the inverse of `native`."""
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def excerpt(value: object) -> str:
    """Shorten a value for a message, since values from files may have any length."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def size_of(count: float) -> str:
    """Return a number of bytes in the unit that suits it, as in `4.21 KB`."""
    rounded = float(f"{count:.3g}")
    power = min(int(math.log10(max(rounded, 1))) // 3, 5)
    return f"{count / 1000**power:.3g} {('B', 'KB', 'MB', 'GB', 'TB', 'PB')[power]}"


def counted(number: int, noun: str) -> str:
    """Return a count with its noun, as in `1 shard` and `1,200 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def in_python(text: str) -> str:
    """Return the text as a string of Python's syntax, in double quotes."""
    return json.dumps(text, ensure_ascii=False)
