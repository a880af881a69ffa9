"""Find the samples of a WebDataset tar, and write the `.idx` file that DALI's reader needs."""

import tarfile
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import google_crc32c

from shards.files import ShardError
from shards.media.registry import kept_suffixes
from shards.tars.headers import Member, in_hidden_folder, is_hidden, members, why_unsafe

Place = tuple[int, int, str]  # of a member: offset of its data in the tar, size in bytes, name
Members = dict[str, Place]  # by extension, in the order of the tar


class Sample(NamedTuple):
    """The members of one key; `unsafe` names a member that must not be read, if any, and says why."""

    key: str
    members: Members
    unsafe: str | None

    def place(self) -> int:
        """Return the offset of its image or other media; unless there is exactly one, that of its first member."""
        found = matching(self.members, kept_suffixes())
        extensions = found if len(found) == 1 else self.members
        return min((self.members[extension][0] for extension in extensions), default=0)


def samples_of(tar_path: Path) -> list[Sample]:
    """Read the headers of a tar and group the members of each sample, wherever they are.

    Samples are in the order of their images. Hidden files are ignored, and hidden folders too unless all members are
    in such; a hard link stands for the earlier member that is its target. Raises ShardError for a file that is not a
    tar, is truncated, or has a damaged header.
    """
    if not tar_path.is_file():
        raise ShardError(f"{tar_path}: is not a file; give a tar")  # opening a pipe would wait for its writer
    visible: dict[str, Sample] = {}
    hidden: dict[str, Sample] = {}
    try:
        with tar_path.open("rb", buffering=0) as file:  # headers are far apart
            for member in members(file, stop=tar_path.stat().st_size):
                if is_hidden(member.name):
                    continue
                samples = hidden if in_hidden_folder(member.name) else visible
                key, extension = split_name(member.name)
                place, why = _place(member, samples)
                sample = samples.setdefault(key, Sample(key, {}, None))
                if why is None and extension in sample.members:
                    why = "is there twice"
                if place is not None:
                    sample.members[extension] = place  # the later one, which is the target of links that follow
                if why is not None:
                    samples[key] = sample._replace(unsafe=f"{member.name} {why}")
    except tarfile.CompressionError as error:
        raise ShardError(f"{tar_path}: {error}") from None
    except tarfile.TarError as error:
        raise ShardError(f"{tar_path}: not a readable tar ({error}); copy or build it again") from None
    return sorted((visible or hidden).values(), key=Sample.place)


def split_name(name: str) -> tuple[str, str]:
    """Return the key and the extension of a member, as WebDataset and DALI split names, ignoring dots of folders."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension


def matching(extensions: Collection[str], suffixes: Collection[str]) -> list[str]:
    """Return the extensions that equal one of the suffixes, as `jpg`, or else those that end in one, as `input.jpg`.

    Suffixes are lower case; the case of extensions does not matter.
    """
    whole = [extension for extension in extensions if extension.lower() in suffixes]
    return whole or [extension for extension in extensions if extension.rpartition(".")[2].lower() in suffixes]


def _place(member: Member, samples: dict[str, Sample]) -> tuple[Place | None, str | None]:
    """Return the position of the bytes of a member, or why they are not read."""
    why = why_unsafe(member)
    if why is not None:
        return None, why
    if member.type != tarfile.LNKTYPE:
        return (member.offset, member.size, member.name), None
    key, extension = split_name(member.target)
    if key not in samples or extension not in samples[key].members:
        return None, f"is a hard link to {member.target}, which is not in the tar before it"
    offset, size, _ = samples[key].members[extension]
    return (offset, size, member.name), None


def idx_name(shard_name: str) -> str:
    """Return the name of a shard's `.idx` in its data set.

    A checksum of the name distinguishes tars of other folders, which may have the same file name.
    """
    stem = PurePosixPath(shard_name).stem
    if "/" in shard_name:
        return f"{stem}-{google_crc32c.value(shard_name.encode('utf-8', 'surrogateescape')):08x}.idx"
    return f"{stem}.idx"


def dali_index(samples: Iterable[Sample]) -> str:
    """Return the text of DALI's index, version 1.2: one line per sample, of `extension offset size name` groups."""
    lines = []
    for sample in samples:
        parts = [
            f"{extension} {offset} {size} {name}"
            for extension, (offset, size, name) in sample.members.items()
            if extension and not any(map(str.isspace, name))  # the format cannot express it
        ]
        if parts:
            lines.append(" ".join(parts))
    return "\n".join([f"v1.2 {len(lines)}", *lines]) + "\n"
