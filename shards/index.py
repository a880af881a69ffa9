"""Describe existing WebDataset tars, such as those of img2dataset, as a data set.

The tars are neither changed nor moved, so an image that would have to be rewritten is rejected, and so is any that
`build` would reject. Nothing is unpacked, no link is followed, and nothing is unpickled.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shards.files import ShardError, sha256_of
from shards.labels import on_mixture
from shards.making.assembly import (
    INPUT_VERSION,
    Record,
    explained,
    finish,
    finished,
    finished_records,
    recognise,
    record_file,
    refuse_other_files,
    refuse_web_server,
    scratch_folder,
    write,
    writing,
)
from shards.making.engines import run
from shards.making.rows import Rows
from shards.manifest import MANIFEST, Dataset, Manifest
from shards.media.media import DEFAULT_MAX_PIXELS, Rejected
from shards.remote.urls import is_url
from shards.storage import (
    StorageError,
    as_local,
    join,
    printable_url,
    replacing,
    size_of,
)
from shards.tables.duplicates import DUPLICATES
from shards.tables.rejects import REJECTS, UNREADABLE_TAR
from shards.tars.check import check_sample
from shards.tars.names import names_of
from shards.tars.samples import dali_index, idx_name, samples_of
from shards.text import escaped, one_line


@dataclass(frozen=True)
class _Job:
    """A tar, by its name in the data set, the name of its record, and whether that record exists."""

    name: str
    record: str
    recorded: bool


def index_tars(
    urls: Sequence[str],
    out: str | Path,
    *,
    workers: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Callable[[int, int], None] = lambda done, total: None,
    note: Callable[[str], None] = lambda line: None,
) -> tuple[Dataset, bool]:
    """Check every image in existing tars and make `out` a data set of them, or resume doing so.

    Args:
        urls: paths, or URLs, of tars, in the order of the data set. Braces as in `{000..099}`
            stand for several of them, and so do `*`, `?` and `[]` in paths.
        out: folder or URL for the manifest; a folder may hold the tars, which are then named relative to it.
        workers: processes, see `build`.
        max_pixels: larger images are rejected.
        progress: called with (tars done, tars in total) after every tar.
        note: called with each further line that the user should know.

    Returns:
        The description of the data set, and whether it was already finished.

    Raises:
        ShardError: a tar or `out` cannot be used, or writing failed; a re-run then continues from there.
    """
    if min(max_pixels, 1 if workers is None else workers) < 1:
        raise ShardError(f"workers={workers}, max_pixels={max_pixels}: both must be 1 or more")
    out = str(out)
    refuse_web_server(out)
    names = names_of(urls, out)
    sizes = [None if is_url(name) else Path(join(out, name)).stat().st_size for name in names]
    facts = [INPUT_VERSION, "index", max_pixels, names, sizes]
    fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    done = 0

    def remaining() -> str:
        return f"{len(names) - done:,} tars are still to be read"

    with explained(out, remaining):
        found = finished(out)
        recognise(out, found, fingerprint)
        if found:
            return found, True
        written = [MANIFEST, REJECTS, DUPLICATES]
        refuse_other_files(out, [*written, *map(idx_name, names)])
        with writing(out, fingerprint):
            recorded = finished_records(out)
            records = [f"tar-{number:06d}" for number in range(len(names))]
            jobs = [_Job(name, record, record in recorded) for name, record in zip(names, records, strict=True)]
            out_of_reach: list[OSError] = []
            unreadable: list[str] = []
            for done, why in enumerate(run(partial(_index_or_keep, out, max_pixels), jobs, workers), 1):
                if isinstance(why, OSError):
                    out_of_reach.append(why)
                elif why is not None:
                    unreadable.append(why)
                progress(done, len(jobs))
            if out_of_reach:
                done -= len(out_of_reach)
                raise out_of_reach[0]
            if len(unreadable) == len(names):
                raise ShardError(f"{unreadable[0]}{f' (of {len(names)} tars, none is readable)' * (len(names) > 1)}")
            for why in unreadable:
                note(f"left out: {why}")
            dataset = finish(
                out,
                records,
                source=", ".join(urls[:3]),
                classes=None,
                ignored=0,
                options=None,
                fingerprint=fingerprint,
            )
    if mixture := on_mixture(dataset.classes):
        note(f"{out}: {mixture}")
    if not dataset.classes and "/" in Manifest.load(out).key(0):
        note(
            f"{out}: its samples are in folders, which `index` does not take as classes; if they are classes, "
            "unpack the tars and use `maskfeat-shards build`"
        )
    return dataset, False


def _index_or_keep(out: str, max_pixels: int, job: _Job) -> OSError | str | None:
    """Record a tar that does not have a record yet.

    Returns why it cannot be read, if so: an OSError, without a record, since it may be temporary; or a description of
    what is wrong with the tar, which the record then holds.
    """
    if job.recorded and _is_whole(out, Record.load(record_file(out, job.record))):
        return None
    location, why = join(out, job.name), None
    with scratch_folder(out) as staging:
        try:
            with as_local(location, staging) as tar:
                rows = _read(tar, job.name, max_pixels)
                record = rows.record(job.name, tar.stat().st_size, sha256_of(tar) if rows.samples else "")
        except OSError as error:
            if is_url(location) and (not isinstance(error, StorageError) or error.transient):
                raise  # the others are likely to fail, too: the store is unreachable, or the disk for copies is full
            return OSError(error.errno, error.strerror, error.filename or location)
        except ShardError as error:
            what = one_line(str(error).removeprefix(f"{tar}: "))
            why = one_line(f"{printable_url(location)}: {what}")
            rows = Rows()
            rows.reject(escaped(job.name), Rejected(UNREADABLE_TAR, what))
            record = rows.record(job.name, 0, "")
        if record.shard is not None:
            with replacing(join(out, idx_name(job.name)), staging) as scratch:
                scratch.write_text(dali_index(rows.samples), "utf-8", "surrogateescape")
        write(record_file(out, job.record), record.dump(), staging)
    return why


def _is_whole(out: str, record: Record) -> bool:
    """Return whether the record of an earlier run is still valid. A tar that was unreadable may have been repaired."""
    if record.shard is not None:
        return size_of(join(out, idx_name(record.shard.name))) is not None
    return all(reject["reason"] != UNREADABLE_TAR for reject in record.rejects)


def _read(tar: Path, name: str, max_pixels: int) -> Rows:
    """Check the samples of one tar and return its rows and rejects."""
    rows = Rows()
    for sample in samples_of(tar):
        try:
            extension, media, checked, label = check_sample(tar, sample, max_pixels)
        except Rejected as error:
            rows.reject(escaped(f"{name}/{sample.key}"), error)
            continue
        rows.add(sample, extension, label, escaped(sample.members[extension][2]), media, checked)
    return rows
