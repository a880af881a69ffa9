"""List the images of a source: a folder, a tar of class tars as ImageNet is published, or a table."""

import errno
import stat
from pathlib import Path

from shards.files import ShardError
from shards.sources.folder import list_folder
from shards.sources.listing import Listing
from shards.sources.table import list_table
from shards.sources.tar import is_tar, list_tar_of_tars


def list_source(source: Path) -> Listing:
    """List `source` by its kind: a folder, `.tar`, `.csv` or `.parquet`. Raises ShardError for any other."""
    try:
        kind = source.stat().st_mode
    except OSError as error:
        why = "no such folder or file" if error.errno == errno.ENOENT else f"{error.strerror}; make it readable"
        raise ShardError(f"{source}: {why}") from None
    if stat.S_ISDIR(kind):
        return list_folder(source)
    if stat.S_ISREG(kind) and is_tar(source.name):
        return list_tar_of_tars(source)
    if stat.S_ISREG(kind) and source.suffix.lower() in (".csv", ".parquet"):
        return list_table(source)
    raise ShardError(f"{source}: is neither a folder nor a .tar, .csv or .parquet file; give one of these")
