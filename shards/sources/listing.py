"""The listing of a source: candidate images in an order that does not depend on the machine."""

import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from shards.files import ShardError
from shards.media import formats, registry
from shards.remote.urls import is_url
from shards.text import printable


class Row(NamedTuple):
    """The place of a file in a table: the table's path within the source, a row group and a row of that, from 0."""

    table: str
    group: int
    position: int


@dataclass(frozen=True, slots=True)  # there may be millions
class Item:
    """A candidate image: its position in the listing, its path in the source, its class, and its bytes.

    The bytes are `size` bytes at `offset` of `file`; without an offset, they are the whole of `file`, a path or a URL,
    or those in the `row` of `file`, a table. `size` is 0 for a dangling link, and None where it is unknown until the
    file is read.
    """

    index: int
    path: str
    label: int | None
    class_name: str | None
    file: str
    offset: int | None
    size: int | None
    row: Row | None = None


@dataclass(frozen=True)
class Listing:
    """The candidate images of a source, sorted by the bytes of their path.

    `paths` have forward slashes and are relative to the folder `root` (or URLs). With `offsets`, `root` is a
    tar, the paths are those of the unpacked folder, and the image bytes lie at these offsets. With `rows`, the images
    are in these rows of tables, the paths name them, and `tables` has the size of each table. `labels` index
    `classes`; both are empty for a source without labels. `groups` has the group of each candidate, which a hold-out
    keeps together, None for none; it is empty for a source without groups. `ignored` counts the files that are not
    candidates: hidden ones and those without the suffix of an image. `notes` are lines that the user should see before
    anything is built, for instance on classes that would be missing.
    """

    root: Path
    paths: list[str]
    sizes: list[int | None]
    offsets: list[int]
    labels: list[int]
    classes: list[str]
    ignored: int
    notes: tuple[str, ...] = ()
    rows: Sequence[Row] = ()
    groups: Sequence[str | None] = ()
    tables: Mapping[str, int] = field(default_factory=dict)

    def item(self, index: int) -> Item:
        """Return one candidate."""
        path = self.paths[index]
        label = self.labels[index] if self.labels else None
        return Item(
            index=index,
            path=path,
            label=label,
            class_name=None if label is None else printable(self.classes[label]),
            file=self._file(index),
            offset=self.offsets[index] if self.offsets else None,
            size=self.sizes[index],
            row=self.rows[index] if self.rows else None,
        )

    def together(self, index: int) -> str:
        """Return what is equal for candidates that are best read one after the other: the row groups of tables."""
        return "/".join(map(str, self.rows[index][:2])) if self.rows else ""

    def _file(self, index: int) -> str:
        if self.offsets:
            return str(self.root)
        path = self.rows[index].table if self.rows else self.paths[index]
        return printable(path) if is_url(path) else posixpath.join(str(self.root), path)


def labelled(paths: Iterable[str]) -> tuple[list[int], list[str]]:
    """Return the labels and the sorted class names of paths whose first folder is the class."""
    folders = [path.partition("/")[0] for path in paths]
    classes = sorted(set(folders), key=os.fsencode)
    index = {name: label for label, name in enumerate(classes)}
    return [index[folder] for folder in folders], classes


def is_candidate(path: str) -> bool:
    """Return whether a file may be a sample: by its suffix, unless it or a folder above it is hidden."""
    hidden = path.startswith(".") or "/." in path
    return not hidden and registry.suffix_of(path) in registry.suffixes()


def without_decoder(paths: Iterable[str]) -> Counter[str]:
    """Count the files, by the kind of their format, whose suffix tells that no decoder for them is installed."""
    kinds = Counter(formats.kind_of_suffix(registry.suffix_of(path)) for path in paths)
    return Counter({kind: count for kind, count in kinds.items() if kind is not None and formats.remedy(kind)})


def no_images(source: Path, files: int, kinds: str = "") -> ShardError:
    """Return the error for a source that has only other files; `kinds` lists their kinds."""
    among = f"{files:,} files{f': {kinds}' if kinds else '; correct the path'}"
    return ShardError(f"{source}: no images or videos (.{', .'.join(sorted(registry.suffixes()))}) among {among}")
