"""Names and messages as text that a file format or a terminal takes."""

import os

_SHOWN = 100  # characters of a value in a message


def printable(path: str) -> str:
    """`path` as valid Unicode: bytes of a file name that are not UTF-8 become backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def one_line(text: str) -> str:
    r"""`text` as one line that a terminal shows and does not obey.

    Control characters, line breaks of every kind, marks that reorder text and lone surrogates become escapes such as
    `\n`, `\x1b` and `\u2028`. Names come from tars, folders and tables of others, and messages quote them.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def native(text: str) -> str:
    """The name of a file in this locale whose bytes are `text` in UTF-8: tables mean the same files in every locale."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def excerpt(value: object) -> str:
    """A short piece of a value for a message: what stands in the files of others may be of any length."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def counted(number: int, noun: str) -> str:
    """How many of something, as in `1 shard` and `1,200 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
