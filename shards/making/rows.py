"""Turn samples into rows of the manifest, for `build` and `index` alike."""

from dataclasses import asdict
from typing import Any

import google_crc32c

from shards.labels import Label
from shards.making.assembly import Record
from shards.manifest import Shard
from shards.media.media import Checked, Media, Rejected
from shards.tables.columns import MANIFEST_SCHEMA, OPTIONAL
from shards.tars.samples import Sample
from shards.text import escaped

_REQUIRED = [column for column in MANIFEST_SCHEMA.names if column != "shard" and column not in OPTIONAL]


def facts(media: Media, checked: Checked) -> dict[str, Any]:
    """Return the columns of the manifest that follow from the bytes of a sample; omitted columns are null."""
    return {
        "size": len(checked.data),
        "height": checked.height,
        "width": checked.width,
        "crc32c": google_crc32c.value(checked.data),
        "media": media.name,
    } | (asdict(checked.video) if checked.video else {})


class Rows:
    """The samples of one shard, its rows of the manifest, and its rejects."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._columns: dict[str, list[Any]] = {column: [] for column in _REQUIRED}
        self._rejects: list[dict[str, Any]] = []

    def add(self, sample: Sample, extension: str, label: Label | None, path: str, media: Media, sound: Checked) -> None:
        """Add a sample whose checked file, `sound`, is the member with this extension; `path` is valid Unicode."""
        row = {"key": escaped(sample.key), "offset": sample.members[extension][0], "label": label, "path": path}
        row |= facts(media, sound)
        for column in dict.fromkeys([*self._columns, *row]):
            self._columns.setdefault(column, [None] * len(self.samples)).append(row.get(column))
        self.samples.append(sample)

    def reject(self, path: str, why: Rejected, size: int | None = None) -> None:
        """Add a rejected file of `size` bytes, where that is known."""
        self._rejects.append({"path": path, "reason": why.reason, "detail": escaped(why.detail), "size": size})

    def record(self, name: str, size: int, sha256: str) -> Record:
        """Return the part of the data set in the tar of this name, size in bytes and SHA-256."""
        shard = Shard(name, len(self.samples), size, sha256) if self.samples else None
        return Record(shard, self._columns, self._rejects)
