"""Divide the work of a build into shards, and write each of them or keep it."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.files import sha256_of
from shards.making.assembly import Record, record_file, scratch_folder, write
from shards.making.holdout import HeldOut
from shards.making.shard import write_shard
from shards.manifest import Options
from shards.media.media import MAX_BYTES
from shards.remote.urls import is_url
from shards.sources.listing import Item, Listing
from shards.storage import join, size_of
from shards.tars.samples import idx_name


@dataclass(frozen=True)
class Job:
    """A shard to write: its name, which its record shares, the images assigned to it, and whether a record exists."""

    name: str
    items: list[Item]
    recorded: bool


def assign(listing: Listing, chosen: Sequence[int], options: Options, recorded: set[str]) -> list[Job]:
    """Shuffle the chosen candidates of a listing, keyed by the seed, and split them into shards."""

    def hashed(name: str) -> bytes:
        # A hash, because no random generator guarantees the same stream in its next version.
        return hashlib.blake2b(os.fsencode(name), key=b"%d" % options.seed).digest()

    def rank(index: int) -> tuple[bytes, bytes]:
        return hashed(listing.together(index)) if listing.rows else b"", hashed(listing.paths[index])

    order = sorted(chosen, key=rank)
    jobs = []
    for number, start in enumerate(range(0, len(order), options.samples_per_shard)):
        name = f"shard-{number:06d}"
        items = [listing.item(index) for index in order[start : start + options.samples_per_shard]]
        jobs.append(Job(name, items, name in recorded))
    return jobs


def bytes_of(sizes: Iterable[int | None]) -> int:
    """Return the total size in bytes of the images that can be written, as far as it is known."""
    return sum(size for size in sizes if size is not None and size <= MAX_BYTES)


def write_or_keep(out: str, options: Options, held_out: HeldOut | None, job: Job) -> tuple[int, int]:
    """Keep a finished shard of an earlier run as it is; write any other, see `write_shard`.

    Returns its number of images, and the bytes of images that were recorded now and not before.
    """
    if not (job.recorded and _is_intact(out, job.name)):
        with scratch_folder(out) as staging:
            record = write_shard(out, f"{job.name}.tar", job.items, options, staging, held_out)
            write(record_file(out, job.name), record.dump(), staging)
    return len(job.items), 0 if job.recorded else bytes_of(item.size for item in job.items)


def _is_intact(out: str, name: str) -> bool:
    """Return whether the files of a recorded shard are complete. A store holds complete files only."""
    shard = Record.load(record_file(out, name)).shard
    if shard is None:
        return True
    tar = join(out, shard.name)
    if size_of(tar) != shard.bytes or size_of(join(out, idx_name(shard.name))) is None:
        return False
    return is_url(out) or sha256_of(Path(tar)) == shard.sha256
