"""What a WebDataset tar holds and where, and the `.idx` file that tells DALI's reader the same."""

import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import google_crc32c

from shards.files import ShardError

# extension -> (offset of the data in the tar, size, member name), in the order of the tar
Members = dict[str, tuple[int, int, str]]


class Sample(NamedTuple):
    """Consecutive members of one key; `unsafe` names one that must not be read, if any, and says why."""

    key: str
    members: Members
    unsafe: str | None

    def offsets(self) -> list[int]:
        """Where its members lie."""
        return [offset for offset, _, _ in self.members.values()]


def samples_of(tar_path: Path) -> list[Sample]:
    """Reads the headers of a tar. Raises ShardError for a file that is no tar, is cut off, or has a damaged header."""
    samples: list[Sample] = []
    try:
        with tarfile.open(tar_path, "r:") as tar:
            for member in members(tar):
                if member.isdir():
                    continue
                # As WebDataset and DALI cut names: dots in folder names do not count.
                folder, slash, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                key = folder + slash + stem
                if not samples or samples[-1].key != key:
                    samples.append(Sample(key, {}, None))
                why = why_unsafe(member)
                if why is None and extension in samples[-1].members:
                    why = "is there twice"
                if why is not None:
                    samples[-1] = samples[-1]._replace(unsafe=f"{member.name} {why}")
                    continue
                samples[-1].members[extension] = (member.offset_data, member.size, member.name)
    except tarfile.TarError as error:
        raise ShardError(f"{tar_path}: not a readable tar ({error}); copy or build it again") from None
    return samples


def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """All members. Raises tarfile.ReadError where headers end before the end mark, which tarfile takes for the end."""
    yield from tar
    assert tar.fileobj
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no header at byte {tar.offset}, where another member or the end mark has to be")


def why_unsafe(member: tarfile.TarInfo) -> str | None:
    """Why a member is never read, or None for a plain file under a plain relative name."""
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
        return "is not a plain file"
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "has an absolute or .. path"
    return None


def idx_name(shard_name: str) -> str:
    """The name of a shard's `.idx` in its data set.

    A checksum of the name tells tars of other folders apart, which may have the same file name.
    """
    stem = PurePosixPath(shard_name).stem
    if "/" in shard_name:
        return f"{stem}-{google_crc32c.value(os.fsencode(shard_name)):08x}.idx"
    return f"{stem}.idx"


def dali_index(samples: Iterable[Sample]) -> str:
    """The text of DALI's index, version 1.2: a line per sample, of `extension offset size name` groups."""
    lines = []
    for sample in samples:
        parts = [
            f"{extension} {offset} {size} {name}"
            for extension, (offset, size, name) in sample.members.items()
            if not any(map(str.isspace, name))  # the format cannot express it
        ]
        if parts:
            lines.append(" ".join(parts))
    return "\n".join([f"v1.2 {len(lines)}", *lines]) + "\n"
