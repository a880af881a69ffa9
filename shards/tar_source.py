"""The images of a tar of class tars, such as `ILSVRC2012_img_train.tar`, which is never unpacked.

A tar within a tar is a range of its bytes, so an image in it is an offset and a size in the outer file.
"""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from posixpath import normpath

from shards.files import ShardError
from shards.listing import Listing, is_candidate, labelled, no_images
from shards.tarfiles import members, why_unsafe


def list_tar_of_tars(source: Path) -> Listing:
    """Lists the images in the `<class>.tar` members of `source` as if it had been unpacked to class folders.

    Raises ShardError for another kind of tar, a damaged one, two class tars of one name, and members that are no plain
    files.
    """
    places: dict[str, tuple[int, int]] = {}  # of a name that is there twice the last counts, as when unpacking
    folders: set[str] = set()
    ignored = 0
    try:
        with tarfile.open(source, "r:") as outer:
            for member in _plain_files(outer, source):
                if not member.name.endswith(".tar"):
                    ignored += 1
                    continue
                folder = PurePosixPath(member.name).stem
                if folder in folders:
                    raise ShardError(f"{source}: holds two tars for the class {folder}; give each class a tar")
                folders.add(folder)
                with tarfile.open(fileobj=outer.extractfile(member), mode="r:") as inner:
                    for image in _plain_files(inner, source / member.name):
                        path = f"{folder}/{normpath(image.name)}"
                        if is_candidate(path):
                            places[path] = (member.offset_data + image.offset_data, image.size)
                        else:
                            ignored += 1
    except tarfile.TarError as error:
        raise ShardError(f"{source}: not a readable tar of tars ({error}); download it again") from None
    except OSError as error:
        raise ShardError(f"{source}: {error.strerror}; make it readable") from None
    if not folders:
        raise ShardError(f"{source}: holds no <class>.tar; to use a WebDataset tar, see `maskfeat-shards index`")
    if not places:
        raise no_images(source, ignored)
    paths = sorted(places, key=os.fsencode)
    labels, classes = labelled(paths)
    return Listing(
        root=source,
        paths=paths,
        sizes=[places[path][1] for path in paths],
        offsets=[places[path][0] for path in paths],
        labels=labels,
        classes=classes,
        ignored=ignored,
    )


def _plain_files(tar: tarfile.TarFile, name: Path) -> Iterator[tarfile.TarInfo]:
    for member in members(tar):
        if member.isdir():
            continue
        why = why_unsafe(member)
        if why is not None:
            raise ShardError(f"{name}: member {member.name} {why}; get the tar from a source that you trust")
        yield member
