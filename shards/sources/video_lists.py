"""Read published lists of videos: Kinetics' own csv, and the lists of SlowFast, VideoMAE and others."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from shards.files import ShardError
from shards.media.registry import suffix_of, suffixes
from shards.text import excerpt

KINETICS = frozenset({"youtube_id", "time_start", "time_end"})  # the columns that form a file name
_LINE = re.compile(r"(.*\S)[ \t](\d+)")
_SUFFIXES = ("mp4", "mkv", "webm", "avi")


def is_plain_list(line: str) -> bool:
    """Return whether this first line of a csv belongs to a headerless list of `path label`, separated by a space."""
    found = _LINE.fullmatch(line.strip())
    return found is not None and suffix_of(found[1]) in suffixes()


def plain_list(source: Path, lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the paths and the labels of such a list. Raises ShardError for a malformed line."""
    paths, labels = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise ShardError(
                f"{source}: line {number}: {excerpt(line.strip())} is not a path, a space and the number of a class, "
                "unlike the lines before it; correct it"
            )
        paths.append(found[1])
        labels.append(found[2])
    return paths, labels


def kinetics_path(source: Path, number: int, row: Mapping[str, str]) -> str:
    """Return the path of a Kinetics video, relative to its csv: `<folder>/<youtube_id>_<start>_<end>.mp4`.

    The folder is the first that has the file, of the label, the split, both, or none.

    Args:
        source: the csv.
        number: the row number, for errors.
        row: the values by column name, in lower case.

    Raises:
        ShardError: a time is not a number.
    """
    try:
        start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
    except (ValueError, OverflowError):
        raise ShardError(f"{source}: row {number}: time_start or time_end is not a number; correct it") from None
    name = f"{row['youtube_id']}_{start:06d}_{end:06d}"
    split, label = row.get("split", ""), row.get("label", "")
    places = dict.fromkeys("/".join(filter(None, place)) for place in ((label,), (split, label), (split,), ()))
    paths = [f"{place}/{name}.{suffix}".lstrip("/") for place in places for suffix in _SUFFIXES]
    return next((path for path in paths if (source.parent / path).is_file()), paths[0])
