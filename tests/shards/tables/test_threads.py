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

    class Watched(io.FileIO):
        def seek(self, *where: int) -> int:
            found.add(threading.get_native_id())
            return super().seek(*where)

    class WatchedURL(storage._Remote):
        def seek(self, *where: int) -> int:
            found.add(threading.get_native_id())
            return super().seek(*where)

    monkeypatch.setattr("io.FileIO", Watched)
    monkeypatch.setattr(storage, "_Remote", WatchedURL)
    return found


def read_everything(root: Any) -> None:
    manifest = Manifest.load(root)
    assert len(manifest.names(0, len(manifest))) == len(manifest)
    assert load_rejects(root) is not None and count_rejects(root) is not None
    load_duplicates(root, len(manifest))


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
