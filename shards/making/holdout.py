"""A hold-out: which candidates of a source become a validation set, and what keeps the training set apart from it.

Groups, such as the pictures of a photographer, are on one side. So are files with equal bytes: the training set leaves
out those that the validation set has.
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
    """What is held out: a `share` of the candidates, as `5%` or a count, in the data set `out`.

    `group_by` is the column of a table by which rows are kept together: by default `group`, if there is one.
    """

    share: str
    out: str
    group_by: str | None = None

    def count(self, total: int) -> int:
        """Return how many of so many candidates are held out: at least 1, and not all.

        Raises ShardError for a share that asks for none, or for all, or is not a share.
        """
        share = _SHARE.fullmatch(self.share.strip())
        if share is None:
            raise ShardError(f"--validation {self.share}: is neither a percentage, such as 5%, nor a count")
        count = Fraction(share["count"] or Fraction(share["percent"]) / 100 * total)
        if not 0 < count < total:
            raise ShardError(f"--validation {self.share}: is not a part of {total:,} files; give more than 0, and less")
        return min(max(1, round(count)), total - 1)


def hold_out(listing: Listing, validation: Validation, seed: int) -> list[int]:
    """Return the candidates that are held out, in the order of the listing.

    Groups are taken in an order that depends on their names and the seed alone, as long as that brings the number of
    candidates closer to what was asked for. A candidate without a group is one by itself.

    Raises ShardError where the groups are too large for that, or there is only one.
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


def refuse_held_out(root: str, data: bytes) -> None:
    """Raise Rejected for a sample, as it would be stored, whose bytes the validation set in `root` has."""
    manifest, samples = _samples_of(root)
    for sample in samples.get((len(data), google_crc32c.value(data)), ()):
        shard = manifest.shard_location(int(manifest.shard[sample]))
        if read(shard, int(manifest.offset[sample]), len(data)) == data:
            raise Rejected(HELD_OUT, f"has the bytes of {manifest.path(sample)}, which is in the validation set")


@lru_cache(maxsize=1)
def _samples_of(root: str) -> tuple[Manifest, dict[tuple[int, int], list[int]]]:
    """Return the manifest of a data set, and its samples by size and checksum."""
    manifest = Manifest.load(root)
    samples = defaultdict[tuple[int, int], list[int]](list)
    for sample, facts in enumerate(zip(manifest.size.tolist(), manifest.crc32c.tolist(), strict=True)):
        samples[facts].append(sample)
    return manifest, dict(samples)
