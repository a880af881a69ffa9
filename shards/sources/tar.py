"""List the images of a tar of class tars, such as `ILSVRC2012_img_train.tar`, which is never unpacked.

A tar within a tar is a range of its bytes, so an image in it is an offset and a size in the outer file.
"""

import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from posixpath import normpath

from shards.files import ShardError
from shards.sources.folder import kind_of_name, on_ignored
from shards.sources.listing import Listing, is_candidate, labelled, no_images
from shards.tars.headers import Readable, in_hidden_folder, is_hidden, members, why_unsafe
from shards.text import native, one_line, printable

_TAR = re.compile(r".*\.(tar|tgz|tbz2?|txz|tzst|tar\.(gz|bz2|xz|zst|lz4|z))", re.DOTALL | re.IGNORECASE)
_SHOWN = 5  # names in a note


def is_tar(name: str) -> bool:
    """Return whether a file has the suffix of a tar, compressed or not."""
    return _TAR.fullmatch(name) is not None


def list_tar_of_tars(source: Path) -> Listing:
    """List the images in the `<class>.tar` members of `source` as if it were unpacked to class folders.

    Raises ShardError for another kind of tar, a damaged or compressed one, two class tars of one name, and members
    that are not plain files.
    """
    places: dict[str, tuple[int, int]] = {}  # the last of equal names counts, as when unpacking
    folders: set[str] = set()
    ignored: Counter[str] = Counter()
    try:
        with source.open("rb", buffering=0) as file:
            for name, offset, size in _files(file, source, "", 0, source.stat().st_size):
                if is_hidden(name) or in_hidden_folder(name) or not is_tar(name):
                    ignored[kind_of_name(name)] += 1
                    continue
                folder = PurePosixPath(name).stem
                if folder in folders:
                    raise ShardError(
                        f"{source}: contains two tars for the class {one_line(folder)}; give each class one tar"
                    )
                folders.add(folder)
                for image, start, length in _files(file, source, name, offset, offset + size):
                    path = native(f"{folder}/{normpath(image)}")
                    if is_candidate(path) and not is_hidden(image):
                        places[path] = (start, length)
                    else:
                        ignored[kind_of_name(image)] += 1
    except OSError as error:
        raise ShardError(f"{source}: {error.strerror}; make it readable") from None
    if not folders:
        raise ShardError(
            f"{source}: contains no <class>.tar; if its folders are classes, unpack it and build the folder; to use a "
            "WebDataset tar, see `maskfeat-shards index`"
        )
    if not places:
        raise no_images(source, ignored.total(), on_ignored(ignored) if ignored else "")
    paths = sorted(places, key=os.fsencode)
    labels, classes = labelled(paths)
    return Listing(
        root=source,
        paths=paths,
        sizes=[places[path][1] for path in paths],
        offsets=[places[path][0] for path in paths],
        labels=labels,
        classes=classes,
        ignored=ignored.total(),
        notes=tuple(f"{source}: {line}" for line in _notes(ignored, folders, classes)),
    )


def _notes(ignored: Counter[str], folders: set[str], classes: Sequence[str]) -> Iterator[str]:
    if ignored:
        yield on_ignored(ignored)
    if missing := sorted({native(folder) for folder in folders} - set(classes), key=os.fsencode):
        more = f" and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
        yield f"no class for tars without an image or video: {', '.join(map(printable, missing[:_SHOWN]))}{more}"


def _files(file: Readable, source: Path, inner: str, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset in `file` and size of the members; a hard link stands for its target.

    The tar, from `start` to `stop` - 1, is that member `inner` of `source`, or the whole for "". Raises ShardError for
    a damaged one and for members that must not be read.
    """
    tar = f"{source}/{inner}" if inner else str(source)
    places: dict[str, tuple[int, int]] = {}
    try:
        for member in members(file, start, stop):
            place = (member.offset, member.size)
            why = None if is_hidden(member.name) else why_unsafe(member)
            if why is None and member.type == tarfile.LNKTYPE:
                place = places.get(member.target, place)
                if member.target not in places:
                    why = f"is a hard link to {member.target}, which is not in the tar before it"
            if why is not None:
                raise ShardError(
                    one_line(f"{tar}: member {member.name} {why}; get the tar from a source that you trust")
                )
            places[member.name] = place
            yield member.name, *place
    except tarfile.CompressionError as error:
        raise ShardError(one_line(f"{tar}: {error}")) from None
    except tarfile.TarError as error:
        where = f", in {inner}" if inner else ""
        raise ShardError(
            one_line(f"{source}: not a readable tar of tars ({error}{where}); download it again")
        ) from None
