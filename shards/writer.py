"""Writes one shard: checked images in a WebDataset tar, DALI's index beside it, and a record of both."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c

from shards.assembly import Record
from shards.check import Checked, Rejected, check_image
from shards.files import replacing, sha256_of
from shards.listing import Item, is_url, printable
from shards.manifest import MANIFEST_SCHEMA, Options, Shard
from shards.reading import read
from shards.tarfiles import dali_index, idx_path, samples_of

_URLS_AT_ONCE = 16


def write_shard(tar_path: Path, items: Iterable[Item], options: Options, staging: Path) -> Record:
    """Checks `items`, in order, and writes those that pass to `tar_path`, with its `.idx` beside it.

    A sample's members are `{key}.cls` (its label, if there are classes), `{key}.jpg` or `{key}.png`, and
    `{key}.json`. The same items give the same bytes. Files appear complete or not at all; `staging` holds
    them until then. Raises OSError when they cannot be written; an unreadable image is a reject.
    """
    # Importing webdataset loads torch where that is installed: only processes that write pay for it.
    from webdataset import TarWriter

    rows: dict[str, list[Any]] = {name: [] for name in MANIFEST_SCHEMA.names if name != "shard"}
    rejects: list[dict[str, Any]] = []
    with replacing(tar_path, staging) as scratch:
        with scratch.open("wb") as file, TarWriter(file, mtime=0, user="", group="", mode=0o644) as tar:
            for item, read_item in _read_ahead(items):
                path = printable(item.path)
                try:
                    image = check_image(_bytes(read_item), options.max_pixels, options.resize)
                except Rejected as error:
                    reject = {"path": path, "reason": error.reason, "detail": error.detail, "size": item.size}
                    rejects.append(reject)
                    continue
                members = _members(item, path, image)
                tar.write(members)
                rows["key"].append(members["__key__"])
                rows["size"].append(len(image.data))
                rows["label"].append(item.label)
                rows["height"].append(image.height)
                rows["width"].append(image.width)
                rows["crc32c"].append(google_crc32c.value(image.data))
                rows["path"].append(path)
        if not rows["key"]:
            scratch.unlink()
            return Record(None, rows, rejects)
        samples = samples_of(scratch)
        for sample in samples:
            offset, _, _ = sample.members["jpg"] if "jpg" in sample.members else sample.members["png"]
            rows["offset"].append(offset)
        shard = Shard(tar_path.name, len(samples), scratch.stat().st_size, sha256_of(scratch))
    with replacing(idx_path(tar_path.parent, tar_path.name), staging) as scratch:
        scratch.write_text(dali_index(samples))
    return Record(shard, rows, rejects)


def _read_ahead(items: Iterable[Item]) -> Iterator[tuple[Item, Callable[[], bytes]]]:
    """Each item with a function that gives its bytes; those of URLs are on their way before it is called."""
    waiting: deque[tuple[Item, Callable[[], bytes]]] = deque()
    with ThreadPoolExecutor(_URLS_AT_ONCE) as pool:
        for item in items:
            read_item = partial(read, item.file, item.offset, item.size)
            waiting.append((item, pool.submit(read_item).result if is_url(item.file) else read_item))
            if len(waiting) > _URLS_AT_ONCE:
                yield waiting.popleft()
        yield from waiting


def _bytes(read_item: Callable[[], bytes]) -> bytes:
    try:
        return read_item()
    except OSError as error:
        raise Rejected("unreadable", error.strerror or type(error).__name__) from None


def _members(item: Item, path: str, image: Checked) -> dict[str, Any]:
    """What webdataset writes for one image. Keys number the listing: safe in a tar and in DALI's index."""
    facts: dict[str, Any] = {"path": path, "height": image.height, "width": image.width}
    if item.class_name is not None:
        facts["class"] = item.class_name
    sample: dict[str, Any] = {"__key__": f"{item.index:09d}", image.suffix: image.data}
    if item.label is not None:
        sample["cls"] = str(item.label).encode("ascii")
    return sample | {"json": json.dumps(facts, sort_keys=True).encode("ascii")}
