"""Lists the images of a source: a folder, a tar of class tars as ImageNet is published, or a table."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from shards.files import ShardError
from shards.listing import Listing, is_candidate, labelled, no_images
from shards.table_source import list_table
from shards.tar_source import is_tar, list_tar_of_tars


def list_source(source: Path) -> Listing:
    """Lists `source` by its kind: a folder, `.tar`, `.csv` or `.parquet`. Raises ShardError for any other."""
    try:
        kind = source.stat().st_mode
    except OSError as error:
        why = "no such folder or file" if error.errno == errno.ENOENT else f"{error.strerror}; make it readable"
        raise ShardError(f"{source}: {why}") from None
    if stat.S_ISDIR(kind):
        return list_folder(source)
    if stat.S_ISREG(kind) and is_tar(source.name):
        return list_tar_of_tars(source)
    if stat.S_ISREG(kind) and source.suffix in (".csv", ".parquet"):
        return list_table(source)
    raise ShardError(f"{source}: is neither a folder nor a .tar, .csv or .parquet file; give one of these")


def list_folder(root: Path) -> Listing:
    """Lists `root`/<class>/**/<image>, or `root`/<image> alone, following links.

    Raises ShardError when the folder is unreadable, without images, or mixes the two layouts.
    """
    try:
        files = sorted(_walk(root, "", ()), key=lambda file: os.fsencode(file[0]))
    except OSError as error:
        raise ShardError(f"{error.filename}: {error.strerror}; make it readable or move it away") from None
    images = [(path, size) for path, size in files if is_candidate(path)]
    if not images:
        raise no_images(root, len(files))
    paths = [path for path, _ in images]
    loose = [path for path in paths if "/" not in path]
    labels, classes = ([], []) if loose else labelled(paths)
    if loose and len(loose) < len(paths):
        folder = next(path for path in paths if "/" in path).partition("/")[0]
        raise ShardError(
            f"{root}: has images both at the top ({loose[0]}) and in folders ({folder}/); "
            "move the former into class folders, or give a folder without sub-folders"
        )
    return Listing(root, paths, [size for _, size in images], [], labels, classes, len(files) - len(images))


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, int]]:
    """Yields (relative path, size) of the files below; `above` are the folders on the way, against cycles."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            path = prefix + entry.name
            try:
                status = entry.stat()
            except OSError:  # a dangling link: whoever reads it reports it
                yield path, 0
                continue
            if stat.S_ISDIR(status.st_mode):
                yield from _walk(Path(entry.path), f"{path}/", (*above, here))
            elif stat.S_ISREG(status.st_mode):
                yield path, status.st_size
