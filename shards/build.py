"""Builds a data set: listing, shuffle, fixed assignment to shards, worker processes, manifest.

What a shard holds depends on the listing and the options alone, so workers, kills and re-runs cannot change a
byte of the result.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from shards import manifest
from shards.assembly import STAGING, Record, explained, finish, is_finished, refuse_other_files, write, writing
from shards.check import DEFAULT_MAX_PIXELS
from shards.files import ShardError, sha256_of
from shards.listing import Item, Listing, printable
from shards.manifest import Dataset, Options
from shards.source import list_source
from shards.workers import available_cpus, run
from shards.writer import write_shard

Progress = Callable[[int, int], None]  # (images done, images in all)


@dataclass(frozen=True)
class _Job:
    """One shard to be: the images assigned to it and where its tar and its record go."""

    tar_path: Path
    record_path: Path
    items: list[Item]


def build(
    source: Path,
    out: Path,
    *,
    samples_per_shard: int = 1000,
    resize: int | None = None,
    workers: int | None = None,
    seed: int = 0,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Progress = lambda done, total: None,
) -> tuple[Dataset, bool]:
    """Builds `out` from the images in `source`, or finishes an interrupted build of the same input.

    Args:
        source: what `list_source` lists: a folder, a tar of class tars, or a table of paths and URLs.
        out: folder to create. It may hold this very build, unfinished or finished.
        samples_per_shard: images assigned to a shard; rejected ones leave it smaller.
        resize: shrink the short side to this many pixels, see `check_image`.
        workers: processes, by default one a CPU core; 1 works in this process. A script that asks for more
            needs the usual `if __name__ == "__main__"` guard.
        seed: order of the images over the shards.
        max_pixels: larger images are rejected.
        progress: called after every shard.

    Returns:
        The description of the data set, and whether it had been finished before.

    Raises:
        ShardError: the source or `out` cannot be used, or writing failed; then a re-run goes on from there.
    """
    workers = available_cpus() if workers is None else workers
    options = Options(samples_per_shard, resize, max_pixels, seed)
    if min(samples_per_shard, workers, max_pixels, 1 if resize is None else resize) < 1:
        raise ShardError(f"{options}, workers={workers}: every number but the seed must be 1 or more")
    if _overlap(source.resolve(), out.resolve()):
        raise ShardError(f"{out}: lies inside {source} or around it; choose a folder apart from it")
    listing = list_source(source)
    fingerprint = _fingerprint(listing, options)
    jobs = _assign(listing, options, out)

    def remaining() -> str:
        return f"{_unwritten(jobs) / 1e6:,.1f} MB of images are still to be written"

    with explained(out, remaining):
        if is_finished(out, fingerprint):
            return Dataset.load(out), True
        refuse_other_files(out, out.iterdir() if out.exists() else ())
        with writing(out, fingerprint) as staging:
            # Only a copy of known size can be held against the free space.
            if resize is None and _unwritten(jobs) > shutil.disk_usage(out).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done = 0
            for images in run(partial(_write_or_keep, options, staging), jobs, workers):
                done += images
                progress(done, len(listing.paths))
            dataset = finish(
                out,
                [job.record_path for job in jobs],
                source=source,
                classes=[printable(name) for name in listing.classes],
                ignored=listing.ignored,
                options=options,
                fingerprint=fingerprint,
            )
    return dataset, False


def _overlap(first: Path, second: Path) -> bool:
    return first.is_relative_to(second) or second.is_relative_to(first)


def _fingerprint(listing: Listing, options: Options) -> str:
    """SHA-256 of all that decides the output, as far as it is known without reading the images."""
    facts = [manifest.VERSION, asdict(options), listing.ignored, listing.classes, listing.labels]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for path, size in zip(listing.paths, listing.sizes, strict=True):
        digest.update(os.fsencode(path) + b"\0" + (b"?" if size is None else b"%d" % size) + b"\0")
    return digest.hexdigest()


def _assign(listing: Listing, options: Options, out: Path) -> list[_Job]:
    """Shuffles the listing, keyed by the seed, and cuts it into shards."""

    def rank(index: int) -> bytes:
        # A hash, since no random generator promises the same stream in its next version.
        return hashlib.blake2b(os.fsencode(listing.paths[index]), key=b"%d" % options.seed).digest()

    order = sorted(range(len(listing.paths)), key=rank)
    jobs = []
    for number, start in enumerate(range(0, len(order), options.samples_per_shard)):
        name = f"shard-{number:06d}"
        items = [listing.item(index) for index in order[start : start + options.samples_per_shard]]
        jobs.append(_Job(out / f"{name}.tar", out / STAGING / f"{name}.json", items))
    return jobs


def _unwritten(jobs: list[_Job]) -> int:
    """Bytes of the images whose shard has no record yet, as far as they are known."""
    return sum(item.size or 0 for job in jobs if not job.record_path.exists() for item in job.items)


def _write_or_keep(options: Options, staging: Path, job: _Job) -> int:
    """Leaves a finished shard of a former run as it is, writes any other; returns its number of images."""
    if not _is_kept(job):
        record = write_shard(job.tar_path, job.items, options, staging)
        write(job.record_path, record.dump(), staging)
    return len(job.items)


def _is_kept(job: _Job) -> bool:
    if not job.record_path.exists():
        return False
    shard = Record.load(job.record_path).shard
    if shard is None:
        return True
    if not job.tar_path.is_file() or not job.tar_path.with_suffix(".idx").is_file():
        return False
    return job.tar_path.stat().st_size == shard.bytes and sha256_of(job.tar_path) == shard.sha256
