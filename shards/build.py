"""Build a data set: list the source, shuffle, assign samples to shards, write the shards in parallel, and index them.

The contents of a shard depend on the listing and the options alone. The number of workers, kills and re-runs therefore
do not change a byte of the result.
"""

import errno
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shards.files import ShardError, real, sha256_of
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
from shards.making.engines import Engine, run
from shards.making.shard import write_shard
from shards.manifest import Dataset, Options
from shards.media.media import DEFAULT_MAX_PIXELS, MAX_BYTES, Check, Frames
from shards.remote.urls import is_url
from shards.sources.folder import refuse_parts
from shards.sources.listing import Item, Listing
from shards.sources.source import list_source
from shards.storage import join, size_of
from shards.storage import listing as files_in
from shards.tars.samples import idx_name
from shards.text import portable, printable

Progress = Callable[[int, int], None]  # (images done, images in total)


@dataclass(frozen=True)
class _Job:
    """A shard to write: its name, which its record shares, the images assigned to it, and whether a record exists."""

    name: str
    items: list[Item]
    recorded: bool


def build(
    source: Path,
    out: str | Path,
    *,
    samples_per_shard: int = 1000,
    resize: int | None = None,
    workers: int | None = None,
    seed: int = 0,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    check: Check = "decode",
    frames: Frames | None = None,
    frame_stride: int = 1,
    engine: Engine = run,
    progress: Progress = lambda done, total: None,
    note: Callable[[str], None] = lambda line: None,
) -> tuple[Dataset, bool]:
    """Build `out` from the images in `source`, or finish an interrupted build of the same input.

    Args:
        source: the input of `list_source`: a folder, a tar of class tars, or a table of paths and URLs.
        out: folder, or URL of an object store, to create. It may hold the same build, unfinished or finished.
        samples_per_shard: images assigned to a shard; rejected ones leave it smaller.
        resize: shrink the short side to this many pixels, see `CheckOptions`.
        workers: processes, by default one per CPU core; 1 works in this process. A script that asks for more
            needs the usual `if __name__ == "__main__"` guard. With `run_on_ray`: the most shards in progress at a time.
        seed: seed of the order of the images over the shards.
        max_pixels: larger images are rejected.
        check: how thoroughly images are checked, see `CheckOptions`.
        frames: how videos are stored, see `CheckOptions`.
        frame_stride: with `frames`, the stride of the frames that are stored, see `CheckOptions`.
        engine: runs the jobs; on other machines, `source` and `out` must be reachable there.
        progress: called after every shard.
        note: called with each line about the source that the user should see before the work begins.

    Returns:
        The description of the data set, and whether it was already finished.

    Raises:
        ShardError: the source or `out` cannot be used, or writing failed; a re-run then continues from there.
    """
    source, out = source.absolute(), str(out) if is_url(str(out)) else str(Path(out).absolute())
    options = Options(samples_per_shard, resize, max_pixels, seed, check, frames, frame_stride)
    numbers = [n for n in (samples_per_shard, max_pixels, workers, resize, frame_stride) if n is not None]
    if not (min(numbers) >= 1 and max(numbers) < 2**63):  # the range that dataset.json allows
        raise ShardError(f"{options}, workers={workers}: every number but the seed must be from 1 to 2^63 - 1")
    if frame_stride > 1 and frames is None:
        raise ShardError(f"--frame-stride {frame_stride}: belongs to --frames jpeg; give both, or neither")
    if not is_url(out) and _overlap(real(source), real(out)):
        raise ShardError(f"{out}: lies inside {source} or around it; choose a folder apart from it")
    refuse_web_server(out)
    listing = list_source(source)
    for line in listing.notes:
        note(line)
    classes = _names(listing)
    unwritten = _bytes(listing.sizes)

    def remaining() -> str:
        return f"{unwritten / 1e6:,.1f} MB of files are still to be written"

    with explained(out, remaining):
        found = finished(out)
        # Files other than images may come and go without making it another data set
        fingerprint = _fingerprint(listing, options, found.ignored if found else listing.ignored)
        recognise(out, found, fingerprint)
        if found:
            return found, True
        refuse_other_files(out, files_in(out))
        if (source.is_dir() or listing.offsets) and not finished_records(out):
            refuse_parts(listing)
        with writing(out, fingerprint):
            jobs = _assign(listing, options, finished_records(out))
            unwritten = sum(_bytes(item.size for item in job.items) for job in jobs if not job.recorded)
            # Only a copy of known size, to a disk, can be compared with the free space.
            if resize is None and frames is None and not is_url(out) and unwritten > shutil.disk_usage(out).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done = 0
            for images, written in engine(partial(_write_or_keep, out, options), jobs, workers):
                done += images
                unwritten -= written
                progress(done, len(listing.paths))
            dataset = finish(
                out,
                [job.name for job in jobs],
                source=source,
                classes=classes,
                ignored=listing.ignored,
                options=options,
                fingerprint=fingerprint,
            )
    return dataset, False


def _names(listing: Listing) -> list[str]:
    """Return the class names for dataset.json. Raises ShardError where two classes would share a name."""
    names = Counter(printable(name) for name in listing.classes)
    for name, count in names.items():
        if count > 1:
            raise ShardError(
                f"{listing.root}: {count} classes would be called {name}, one of which has bytes that are not UTF-8; "
                "rename it"
            )
    return list(names)


def _overlap(first: Path, second: Path) -> bool:
    return first.is_relative_to(second) or second.is_relative_to(first)


def _fingerprint(listing: Listing, options: Options, ignored: int) -> str:
    """Return the SHA-256 of everything that decides the output and is known without reading the images.

    Names are encoded as UTF-8, whatever the locale.
    """
    classes = [portable(name) for name in listing.classes]
    facts = [INPUT_VERSION, options.facts(), ignored, classes, listing.labels]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for path, size in zip(listing.paths, listing.sizes, strict=True):
        digest.update(os.fsencode(path) + b"\0" + (b"?" if size is None else b"%d" % size) + b"\0")
    return digest.hexdigest()


def _assign(listing: Listing, options: Options, recorded: set[str]) -> list[_Job]:
    """Shuffle the listing, keyed by the seed, and split it into shards."""

    def rank(index: int) -> bytes:
        # A hash, because no random generator guarantees the same stream in its next version.
        return hashlib.blake2b(os.fsencode(listing.paths[index]), key=b"%d" % options.seed).digest()

    order = sorted(range(len(listing.paths)), key=rank)
    jobs = []
    for number, start in enumerate(range(0, len(order), options.samples_per_shard)):
        name = f"shard-{number:06d}"
        items = [listing.item(index) for index in order[start : start + options.samples_per_shard]]
        jobs.append(_Job(name, items, name in recorded))
    return jobs


def _bytes(sizes: Iterable[int | None]) -> int:
    """Return the total size in bytes of the images that can be written, as far as it is known."""
    return sum(size for size in sizes if size is not None and size <= MAX_BYTES)


def _write_or_keep(out: str, options: Options, job: _Job) -> tuple[int, int]:
    """Keep a finished shard of an earlier run as it is; write any other.

    Returns its number of images, and the bytes of images that were recorded now and not before.
    """
    if not (job.recorded and _is_intact(out, job.name)):
        with scratch_folder(out) as staging:
            record = write_shard(out, f"{job.name}.tar", job.items, options, staging)
            write(record_file(out, job.name), record.dump(), staging)
    return len(job.items), 0 if job.recorded else _bytes(item.size for item in job.items)


def _is_intact(out: str, name: str) -> bool:
    """Return whether the files of a recorded shard are complete. A store holds complete files only."""
    shard = Record.load(record_file(out, name)).shard
    if shard is None:
        return True
    tar = join(out, shard.name)
    if size_of(tar) != shard.bytes or size_of(join(out, idx_name(shard.name))) is None:
        return False
    return is_url(out) or sha256_of(Path(tar)) == shard.sha256
