"""Hold out part of a source as a validation set, and keep the training set apart from it.

A group, such as the pictures of a photographer, is on one side as a whole. So are files with equal bytes: the training
set omits those that are in the validation set.
"""

import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import google_crc32c

from shards.files import ShardError
from shards.manifest import Manifest
from shards.media.media import Rejected
from shards.sources.listing import Listing
from shards.storage import read
from shards.tables.rejects import HELD_OUT
from shards.text import portable

_SHARE = re.compile(r"(?P<percent>\d+(\.\d+)?)%|(?P<count>\d+)")


@dataclass(frozen=True)
class Validation:
    """The options of a hold-out.

    Args:
        share: the part of the candidates that is held out: a percentage, as `5%`, or a count.
        out: folder or URL of the validation set.
        group_by: the column of a table whose equal values stay together; by default `group`, if there is one.
    """

    share: str
    out: str
    group_by: str | None = None

    def count(self, total: int) -> int:
        """Return how many of `total` candidates are held out: at least one, and not all.

        Raises ShardError for a share that is none, or all, or neither a percentage nor a count.
        """
        share = _SHARE.fullmatch(self.share.strip())
        if share is None:
            raise ShardError(f"--validation {self.share}: is neither a percentage, such as 5%, nor a count")
        count = Fraction(share["count"] or Fraction(share["percent"]) / 100 * total)
        if not 0 < count < total:
            raise ShardError(
                f"--validation {self.share} does not hold out a part of the {total:,} files: give more than 0, "
                "and less than all of them"
            )
        return min(max(1, round(count)), total - 1)


def hold_out(listing: Listing, validation: Validation, seed: int) -> list[int]:
    """Return the indices of the candidates that are held out, in ascending order.

    Groups are added in an order that depends only on their names and the seed, each if it brings the number of
    candidates closer to the share. A candidate without a group is a group of its own.

    Raises ShardError where every group is too large, or there is only one.
    """
    wanted = validation.count(len(listing.paths))
    groups = defaultdict[tuple[str, str], list[int]](list)
    for index, path in enumerate(listing.paths):
        group = listing.groups[index] if listing.groups else None
        groups[("path", portable(path)) if group is None else ("group", group)].append(index)

    def rank(group: tuple[str, str]) -> bytes:
        name = "\0".join(group).encode("utf-8", "surrogateescape")
        return hashlib.blake2b(name, key=b"%d" % seed, person=b"held out").digest()

    chosen: list[int] = []
    for name in sorted(groups, key=rank):
        more = len(groups[name])
        if 2 * len(chosen) + more < 2 * wanted and len(chosen) + more < len(listing.paths):
            chosen += groups[name]
    if not chosen:
        largest = max(map(len, groups.values()))
        raise ShardError(
            f"--validation {validation.share}: is {wanted:,} files, and the groups of {listing.root} have up to "
            f"{largest:,}, so none fits; hold out more"
        )
    return sorted(chosen)


@dataclass(frozen=True)
class HeldOut:
    """A finished validation set: its folder or URL, and the SHA-256 of its manifest."""

    root: str
    identity: str


def refuse_held_out(validation: HeldOut, data: bytes) -> None:
    """Raise Rejected for a sample, in the bytes that would be stored, that is in the validation set."""
    manifest, samples = _samples_of(validation)
    for sample in samples.get((len(data), google_crc32c.value(data)), ()):
        shard = manifest.shard_location(int(manifest.shard[sample]))
        if read(shard, int(manifest.offset[sample]), len(data)) == data:
            raise Rejected(HELD_OUT, f"has the bytes of {manifest.path(sample)}, which is in the validation set")


@lru_cache(maxsize=1)
def _samples_of(validation: HeldOut) -> tuple[Manifest, dict[tuple[int, int], list[int]]]:
    """Return the manifest of a validation set, and its samples by size and checksum."""
    manifest = Manifest.load(validation.root)
    samples = defaultdict[tuple[int, int], list[int]](list)
    for sample, facts in enumerate(zip(manifest.size.tolist(), manifest.crc32c.tolist(), strict=True)):
        samples[facts].append(sample)
    return manifest, dict(samples)
