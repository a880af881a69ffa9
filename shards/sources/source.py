"""List the images of a source: a folder, a tar of class tars as ImageNet is published, or a table."""

import errno
import glob
import stat
from pathlib import Path

from shards.files import ShardError
from shards.sources.folder import list_folder, refuse_splits
from shards.sources.listing import Listing
from shards.sources.table import list_parquet, list_table
from shards.sources.table_columns import no_group
from shards.sources.tar import is_tar, list_tar_of_tars


def list_source(source: Path, group_by: str | None = None) -> Listing:
    """List `source` by its kind: a folder, `.tar`, `.csv` or `.parquet`, or a pattern that matches Parquet files.

    `group_by` is the column of a table that groups its rows, by default `group` where there is one. Raises ShardError
    for any other source, and for one without that column.
    """
    if tables := _matching(source):
        return list_parquet(*tables, group_by)
    try:
        kind = source.stat().st_mode
    except OSError as error:
        why = "no such folder or file" if error.errno == errno.ENOENT else f"{error.strerror}; make it readable"
        raise ShardError(f"{source}: {why}") from None
    if stat.S_ISDIR(kind):
        return _grouped(source, list_folder(source, group_by), group_by)
    if stat.S_ISREG(kind) and is_tar(source.name):
        return _grouped(source, list_tar_of_tars(source), group_by)
    if stat.S_ISREG(kind) and source.suffix.lower() == ".parquet":
        return list_parquet(source.parent, [source.name], group_by)
    if stat.S_ISREG(kind) and source.suffix.lower() == ".csv":
        return _grouped(source, list_table(source, group_by), group_by)
    raise ShardError(f"{source}: is neither a folder nor a .tar, .csv or .parquet file; give one of these")


def _grouped(source: Path, listing: Listing, group_by: str | None) -> Listing:
    if group_by is not None and not listing.groups:
        raise no_group(source, group_by)
    return listing


def _matching(source: Path) -> tuple[Path, list[str]] | None:
    """Return the folder and the names of the Parquet files that fit a pattern; None where `source` is not one."""
    if not glob.has_magic(str(source)) or source.suffix.lower() != ".parquet" or source.exists():
        return None
    folder = next(parent for parent in source.parents if not glob.has_magic(str(parent)))
    tables = sorted(str(path.relative_to(folder)) for path in folder.glob(str(source.relative_to(folder))))
    refuse_splits(folder, tables)
    return (folder, tables) if tables else None
