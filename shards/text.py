"""Names and messages as text that a file format or a terminal takes."""

import os


def printable(path: str) -> str:
    """`path` as valid Unicode: bytes of a file name that are not UTF-8 become backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def one_line(text: str) -> str:
    r"""`text` as one line that a terminal shows and does not obey.

    Control characters, line breaks of every kind, marks that reorder text and lone surrogates become escapes such as
    `\n`, `\x1b` and `\u2028`. Names come from tars, folders and tables of others, and messages quote them.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
