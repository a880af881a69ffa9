"""Builds a data set: listing, shuffle, fixed assignment to shards, worker processes, manifest.

What a shard holds depends on the listing and the options alone, so workers, kills and re-runs cannot change a
byte of the result.
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
from shards.media.formats import remedy
from shards.media.media import DEFAULT_MAX_PIXELS, MAX_BYTES, Alpha, Check, Depth, Frames
from shards.remote.urls import is_url
from shards.sources.folder import refuse_parts
from shards.sources.listing import Item, Listing, without_decoder
from shards.sources.source import list_source
from shards.storage import join, size_of
from shards.storage import listing as files_in
from shards.tars.samples import idx_name
from shards.text import counted, portable, printable

Progress = Callable[[int, int], None]  # (images done, images in all)


@dataclass(frozen=True)
class _Job:
    """One shard to be: its name, which its record has too, the images assigned to it, and whether it has a record."""

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
    alpha: Alpha = "reject",
    depth: Depth = "reject",
    engine: Engine = run,
    progress: Progress = lambda done, total: None,
    note: Callable[[str], None] = lambda line: None,
) -> tuple[Dataset, bool]:
    """Builds `out` from the images in `source`, or finishes an interrupted build of the same input.

    Args:
        source: what `list_source` lists: a folder, a tar of class tars, or a table of paths and URLs.
        out: folder, or URL of an object store, to create. It may hold this very build, unfinished or finished.
        samples_per_shard: images assigned to a shard; rejected ones leave it smaller.
        resize: shrink the short side to this many pixels, see `CheckOptions`.
        workers: processes, by default one a CPU core; 1 works in this process. A script that asks for more
            needs the usual `if __name__ == "__main__"` guard. Of `run_on_ray`, the shards under way.
        seed: order of the images over the shards.
        max_pixels: larger images are rejected.
        check: how closely images are looked at, see `CheckOptions`.
        frames: how videos are stored, see `CheckOptions`.
        frame_stride: with `frames`, the stride of the frames that are stored, see `CheckOptions`.
        alpha: what becomes of images with transparent pixels, see `CheckOptions`.
        depth: what becomes of images of more than 8 bits a channel, see `CheckOptions`.
        engine: what runs the work on shards; on other machines too, where it finds `source` and `out`.
        progress: called after every shard.
        note: called with each line on the source that the user should see before the work begins.

    Returns:
        The description of the data set, and whether it had been finished before.

    Raises:
        ShardError: the source or `out` cannot be used, or writing failed; then a re-run goes on from there.
    """
    source, out = source.absolute(), str(out) if is_url(str(out)) else str(Path(out).absolute())
    options = Options(samples_per_shard, resize, max_pixels, seed, check, frames, frame_stride, alpha, depth)
    numbers = [n for n in (samples_per_shard, max_pixels, workers, resize, frame_stride) if n is not None]
    if not (min(numbers) >= 1 and max(numbers) < 2**63):  # as dataset.json has to have them
        raise ShardError(f"{options}, workers={workers}: every number but the seed must be from 1 to 2^63 - 1")
    if frame_stride > 1 and frames is None:
        raise ShardError(f"--frame-stride {frame_stride}: belongs to --frames jpeg; give both, or neither")
    if not is_url(out) and _overlap(real(source), real(out)):
        raise ShardError(f"{out}: lies inside {source} or around it; choose a folder apart from it")
    refuse_web_server(out)
    listing = list_source(source)
    missing = without_decoder(listing.paths)
    remedies = [f"{source}: {counted(n, f'{kind} file')} cannot be read: {remedy(kind)}" for kind, n in missing.items()]
    for line in [*listing.notes, *remedies]:
        note(line)
    classes = _names(listing)
    unwritten = _bytes(listing.sizes)

    def remaining() -> str:
        return f"{unwritten / 1e6:,.1f} MB of files are still to be written"

    with explained(out, remaining):
        found = finished(out)
        # That other files than images come and go beside these makes no other data set
        fingerprint = _fingerprint(listing, options, found.ignored if found else listing.ignored, sorted(missing))
        recognise(out, found, fingerprint)
        if found:
            return found, True
        refuse_other_files(out, files_in(out))
        if (source.is_dir() or listing.offsets) and not listing.rows and not finished_records(out):
            refuse_parts(listing)
        with writing(out, fingerprint):
            jobs = _assign(listing, options, finished_records(out))
            unwritten = sum(_bytes(item.size for item in job.items) for job in jobs if not job.recorded)
            # Only a copy of known size, to a disk, can be held against the free space.
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
    """The classes as dataset.json names them. Raises ShardError where two would have one name."""
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


def _fingerprint(listing: Listing, options: Options, ignored: int, missing: list[str]) -> str:
    """Return the SHA-256 of all that decides the output, as far as it is known without reading the images.

    Names are taken as UTF-8, whatever the locale. `missing` are the formats of the listing that have no decoder.
    """
    classes = [portable(name) for name in listing.classes]
    facts: list[object] = [INPUT_VERSION, options.facts(), ignored, classes, listing.labels]
    facts += [fact for fact in (missing, dict(listing.tables)) if fact]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for path, size in zip(listing.paths, listing.sizes, strict=True):
        digest.update(os.fsencode(path) + b"\0" + (b"?" if size is None else b"%d" % size) + b"\0")
    return digest.hexdigest()


def _assign(listing: Listing, options: Options, recorded: set[str]) -> list[_Job]:
    """Shuffles the listing, keyed by the seed, and cuts it into shards."""

    def hashed(name: str) -> bytes:
        # Since no random generator promises the same stream in its next version
        return hashlib.blake2b(os.fsencode(name), key=b"%d" % options.seed).digest()

    def rank(index: int) -> tuple[bytes, bytes]:
        return hashed(listing.together(index)), hashed(listing.paths[index])

    order = sorted(range(len(listing.paths)), key=rank)
    jobs = []
    for number, start in enumerate(range(0, len(order), options.samples_per_shard)):
        name = f"shard-{number:06d}"
        items = [listing.item(index) for index in order[start : start + options.samples_per_shard]]
        jobs.append(_Job(name, items, name in recorded))
    return jobs


def _bytes(sizes: Iterable[int | None]) -> int:
    """Bytes of the images that can be written, as far as they are known."""
    return sum(size for size in sizes if size is not None and size <= MAX_BYTES)


def _write_or_keep(out: str, options: Options, job: _Job) -> tuple[int, int]:
    """Leaves a finished shard of a former run as it is, writes any other.

    Returns its number of images, and how many bytes of images have their record now that had none.
    """
    if not (job.recorded and _is_intact(out, job.name)):
        with scratch_folder(out) as staging:
            record = write_shard(out, f"{job.name}.tar", job.items, options, staging)
            write(record_file(out, job.name), record.dump(), staging)
    return len(job.items), 0 if job.recorded else _bytes(item.size for item in job.items)


def _is_intact(out: str, name: str) -> bool:
    """Whether the files of a recorded shard are what was written. A store has them complete or not at all."""
    shard = Record.load(record_file(out, name)).shard
    if shard is None:
        return True
    tar = join(out, shard.name)
    if size_of(tar) != shard.bytes or size_of(join(out, idx_name(shard.name))) is None:
        return False
    return is_url(out) or sha256_of(Path(tar)) == shard.sha256
