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
from shards.check import Checked, check_image, out_of_memory, refuse_huge
from shards.listing import Item, is_url
from shards.manifest import MANIFEST_SCHEMA, Options, Shard
from shards.rejected import Rejected
from shards.storage import StorageError, join, read, replacing
from shards.tarfiles import Sample, dali_index, idx_name
from shards.tarwriter import TarWriter
from shards.text import printable

_URLS_AT_ONCE = 16
_DEADLINE = 20.0  # seconds for an image behind a URL: lists from the web have many dead links


def write_shard(out: str, name: str, items: Iterable[Item], options: Options, staging: Path) -> Record:
    """Checks `items`, in order, and writes those that pass to the tar `name` in `out`, with its `.idx` beside it.

    A sample's members are `{key}.cls` (its label, if there are classes), `{key}.jpg` or `{key}.png`, and
    `{key}.json`. The same items give the same bytes. Files appear complete or not at all; `staging` holds
    them until then. Raises OSError when they cannot be written; an unreadable image is a reject.
    """
    rows: dict[str, list[Any]] = {column: [] for column in MANIFEST_SCHEMA.names if column != "shard"}
    rejects: list[dict[str, Any]] = []
    samples: list[Sample] = []
    with replacing(join(out, name), staging) as scratch:
        with TarWriter(scratch) as tar:
            for item, read_item in _read_ahead(items):
                path = printable(item.path)
                try:
                    image = check_image(read_item(), options.max_pixels, options.resize, options.check)
                except Rejected as error:
                    reject = {"path": path, "reason": error.reason, "detail": error.detail, "size": item.size}
                    rejects.append(reject)
                    continue
                sample = _write(tar, item, path, image)
                samples.append(sample)
                rows["key"].append(sample.key)
                rows["offset"].append(sample.members[image.suffix][0])
                rows["size"].append(len(image.data))
                rows["label"].append(item.label)
                rows["height"].append(image.height)
                rows["width"].append(image.width)
                rows["crc32c"].append(google_crc32c.value(image.data))
                rows["path"].append(path)
            sha256 = tar.finish()
        if not samples:
            scratch.unlink()
            return Record(None, rows, rejects)
    with replacing(join(out, idx_name(name)), staging) as scratch:
        scratch.write_text(dali_index(samples))
    return Record(Shard(name, len(samples), tar.size, sha256), rows, rejects)


def _read_ahead(items: Iterable[Item]) -> Iterator[tuple[Item, Callable[[], bytes]]]:
    """Each item with a function that gives its bytes; those of URLs are on their way before it is called."""
    waiting: deque[tuple[Item, Callable[[], bytes]]] = deque()
    with ThreadPoolExecutor(_URLS_AT_ONCE) as pool:
        for item in items:
            read_item = partial(_read, item)
            waiting.append((item, pool.submit(read_item).result if is_url(item.file) else read_item))
            if len(waiting) > _URLS_AT_ONCE:
                yield waiting.popleft()
        yield from waiting


def _read(item: Item) -> bytes:
    """The bytes of a candidate. Raises Rejected where they cannot be had."""
    refuse_huge(item.size or 0)
    try:
        return read(item.file, item.offset, item.size, deadline=_DEADLINE)
    except OSError as error:
        passing = isinstance(error, StorageError) and error.transient
        raise Rejected("unreachable" if passing else "unreadable", error.strerror or type(error).__name__) from None
    except MemoryError:
        raise out_of_memory() from None


def _write(tar: TarWriter, item: Item, path: str, image: Checked) -> Sample:
    """Adds the members of one image. Keys number the listing: safe in a tar and in DALI's index."""
    facts = {"height": image.height, "path": path, "width": image.width}
    if item.class_name is not None:
        facts = {"class": item.class_name} | facts
    contents = {image.suffix: image.data, "json": json.dumps(facts).encode("ascii")}
    if item.label is not None:
        contents["cls"] = b"%d" % item.label
    key = f"{item.index:09d}"
    members = {}
    for extension, data in sorted(contents.items()):
        member = f"{key}.{extension}"
        members[extension] = (tar.add(member, data), len(data), member)
    return Sample(key, members, None)
