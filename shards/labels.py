"""Parse labels: one rule for csv and parquet tables, and for `.cls` and `.json` members of tars."""

import math
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal

from shards.text import excerpt

MAX_LABEL = 99_999  # the largest number that may be a label; there is a class for each up to the largest label

Label = int | str  # a class number, which does not change, or a class name

# The names of labels in tables and in .json, the most explicit first. Case and surrounding spaces do not matter.
NAMES = ("label", "labels", "class", "class_name", "class_id", "cls", "category", "category_id", "target")

_WHOLE = re.compile(r"(0|[1-9][0-9]*)(\.0*)?")  # leading zeros, as in 007, make it a name
_NUMBER = re.compile(r"[+-]?(?!0\d)(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def label_name(names: Iterable[str]) -> str | None:
    """Return which of these column names or keys holds the label; None if none does."""
    known = {name.strip().casefold(): name for name in reversed(list(names))}
    return next((known[name] for name in NAMES if name in known), None)


def as_label(value: object) -> Label | None:
    """Return the label that a value means; None where it means that there is none.

    Whole numbers are numbers, whether they are integers, floats (as pandas writes a column with gaps), decimals or
    text. Other text is the name of a class, stripped of spaces. Null, NaN and empty text are no label.

    Raises:
        ValueError: it is anything else, such as 0.5, -1, true or a list. The message begins with the value.
    """
    shown = excerpt(value)
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{shown} is not UTF-8") from None
    if isinstance(value, str):
        value = value.strip()
        whole = _WHOLE.fullmatch(value)
        if whole is None:
            if value and _NUMBER.fullmatch(value):
                raise ValueError(f"{shown} is not a whole number from 0 to {MAX_LABEL}")
            return value or None
        value = int(whole[1]) if len(whole[1]) <= len(str(MAX_LABEL)) else math.inf
    if value is None or (isinstance(value, float | Decimal) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError(f"{shown} is neither a name nor a whole number")
    if not (0 <= value <= MAX_LABEL and value == int(value)):
        raise ValueError(f"{shown} is not a whole number from 0 to {MAX_LABEL}")
    return int(value)


def number_classes(labels: set[Label]) -> tuple[dict[Label, int], list[str]]:
    """Return the number of each distinct label, and the names of the classes by number.

    Numbers do not change. Names are sorted by their bytes; if there is any name, numbers are names, too.
    """
    numbers = [label for label in labels if isinstance(label, int)]
    if len(numbers) == len(labels):
        return {label: label for label in numbers}, [str(label) for label in range(max(numbers, default=-1) + 1)]
    classes = sorted({str(label) for label in labels}, key=str.encode)
    number = {name: label for label, name in enumerate(classes)}
    return {label: number[str(label)] for label in labels}, classes


def on_mixture(classes: Sequence[str]) -> str | None:
    """Return a note where some labels of these classes are numbers and others names; None where all are alike."""
    numbers = [name for name in classes if isinstance(as_label(name), int)]
    if len(numbers) in (0, len(classes)):
        return None
    name = next(name for name in classes if name not in numbers)
    return (
        f"labels are partly numbers (such as {numbers[0]}) and partly names (such as {excerpt(name)}), so numbers are "
        "names, too, and not kept: classes are numbered by the order of their names"
    )
