"""Arrow's threads outlive a read. One that releases a Python file while the interpreter ends aborts the process."""

import io
import threading
from pathlib import Path
from typing import Any

import pytest
from servers import http_server

from shards import storage
from shards.manifest import Manifest
from shards.tables.columns import media_in
from shards.tables.duplicates import find_duplicates, load_duplicates
from shards.tables.rejects import count_rejects, load_rejects


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Return the threads that read Python files, which are added as they read."""
    found = set[int]()

    def watched(kind: Any) -> Any:
        def seek(self: Any, *where: int) -> int:
            found.add(threading.get_native_id())
            return int(kind.seek(self, *where))

        return type("Watched", (kind,), {"seek": seek})

    monkeypatch.setattr(io, "FileIO", watched(io.FileIO))
    monkeypatch.setattr(storage, "_Remote", watched(storage._Remote))
    return found


def read_everything(root: str | Path) -> None:
    manifest = Manifest.load(root)
    assert len(manifest.names(0, len(manifest))) == len(manifest)
    assert len(load_rejects(root)) == count_rejects(root).total() == 1
    assert len(load_duplicates(root, len(manifest))) == 1


def test_tables_are_read_without_python_files_in_threads_of_arrow(root: Path, users: set[int]) -> None:
    read_everything(root)
    manifest = Manifest.load(root)
    assert media_in(root / "manifest.parquet") == {"image"}
    find_duplicates(root / "manifest.parquet", [manifest.shard_location(shard) for shard in range(3)])
    assert users == {threading.get_native_id()}


def test_tables_behind_urls_are_read_without_python_files_in_threads_of_arrow(root: Path, users: set[int]) -> None:
    with http_server(root) as server:
        read_everything(server.url)
    assert users == {threading.get_native_id()}
