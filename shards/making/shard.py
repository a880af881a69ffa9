"""Write one shard: checked samples in a WebDataset tar, DALI's index beside it, and a record of both."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from shards.making.assembly import Record
from shards.making.holdout import HeldOut, refuse_held_out
from shards.making.rows import Rows
from shards.manifest import Options
from shards.media.media import Checked, Rejected, out_of_memory, refuse_huge
from shards.media.registry import media_of
from shards.remote.urls import is_url
from shards.sources.listing import Item
from shards.sources.parquet import read_row
from shards.storage import StorageError, join, read, replacing
from shards.tars.samples import Sample, dali_index, idx_name
from shards.tars.writer import TarWriter
from shards.text import printable

_URLS_AT_ONCE = 16
_DEADLINE = 20.0  # seconds per image URL: lists from the web have many dead links


def write_shard(
    out: str, name: str, items: Iterable[Item], options: Options, staging: Path, held_out: HeldOut | None = None
) -> Record:
    """Check `items`, in order, and write those that pass to the tar `name` in `out`, with its `.idx` beside it.

    A sample's members are `{key}.cls` (its label, if there are classes), `{key}.jpg` or the like, and
    `{key}.json`. The same items give the same bytes. Files are written to `staging` and then published atomically.
    An unreadable image is a reject, and so is a sample that is in the validation set `held_out`. Raises OSError when
    the files cannot be written.
    """
    rows = Rows()
    with replacing(join(out, name), staging) as scratch:
        with TarWriter(scratch) as tar:
            for item, read_item in _read_ahead(items):
                path = printable(item.path)
                try:
                    data = read_item()
                    media = media_of(item.path, data)
                    checked = media.check(data, options.for_check())
                    if held_out is not None:
                        refuse_held_out(held_out, checked.data)
                except Rejected as error:
                    rows.reject(path, error, item.size)
                    continue
                rows.add(_write(tar, item, path, checked), checked.suffix, item.label, path, media, checked)
            sha256 = tar.finish()
        if not rows.samples:
            scratch.unlink()
    if rows.samples:
        with replacing(join(out, idx_name(name)), staging) as scratch:
            scratch.write_text(dali_index(rows.samples))
    return rows.record(name, tar.size, sha256)


def _read_ahead(items: Iterable[Item]) -> Iterator[tuple[Item, Callable[[], bytes]]]:
    """Yield each item with a function that returns its bytes; downloads of URLs start before it is called."""
    waiting: deque[tuple[Item, Callable[[], bytes]]] = deque()
    with ThreadPoolExecutor(_URLS_AT_ONCE) as pool:
        for item in items:
            read_item = partial(_read, item)
            waiting.append((item, pool.submit(read_item).result if is_url(item.file) else read_item))
            if len(waiting) > _URLS_AT_ONCE:
                yield waiting.popleft()
        yield from waiting


def _read(item: Item) -> bytes:
    """Return the bytes of a candidate. Raises Rejected where they cannot be read."""
    refuse_huge(item.size or 0)
    if item.row is not None:
        return read_row(item.file, item.row)
    try:
        return read(item.file, item.offset, item.size, deadline=_DEADLINE)
    except OSError as error:
        passing = isinstance(error, StorageError) and error.transient
        raise Rejected("unreachable" if passing else "unreadable", error.strerror or type(error).__name__) from None
    except MemoryError:
        raise out_of_memory() from None


def _write(tar: TarWriter, item: Item, path: str, checked: Checked) -> Sample:
    """Add the members of one sample. Keys are positions in the listing, which are safe in a tar and in DALI's index."""
    facts = {"height": checked.height, "path": path, "width": checked.width}
    if item.class_name is not None:
        facts = {"class": item.class_name} | facts
    contents = {checked.suffix: checked.data, "json": json.dumps(facts).encode("ascii")}
    if item.label is not None:
        contents["cls"] = b"%d" % item.label
    key = f"{item.index:09d}"
    members = {}
    for extension, data in sorted(contents.items()):
        member = f"{key}.{extension}"
        members[extension] = (tar.add(member, data), len(data), member)
    return Sample(key, members, None)
