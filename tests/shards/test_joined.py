"""Several data sets as one manifest."""

from pathlib import Path

import numpy as np
import pytest
from labelled import labelled_shards
from servers import http_server

from shards.manifest import Manifest


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two data sets, of two shards and of one."""
    found = labelled_shards(tmp_path_factory.mktemp("sets"), {"a": {"red": 12, "blue": 9}, "b": {"red": 3, "blue": 2}})
    return list(found.values())


def test_ids_and_shards_of_the_second_follow_those_of_the_first(parts: list[Path]) -> None:
    one, other = (Manifest.load(part) for part in parts)
    whole, shared = Manifest.joined([one, other])
    assert (len(whole), len(one), whole.counts.tolist()) == (26, 21, [16, 5, 5])
    for name in ("offset", "size", "label", "height", "width", "crc32c"):
        column = getattr(whole, name)
        np.testing.assert_array_equal(column, np.concatenate([getattr(one, name), getattr(other, name)]))
        assert all(np.shares_memory(column, getattr(part, name)) for part in shared), name
    assert whole.shard.tolist() == [0] * 16 + [1] * 5 + [2] * 5
    assert whole.shard_bytes.tolist() == [*one.shard_bytes.tolist(), *other.shard_bytes.tolist()]
    locations = [Path(whole.shard_location(shard)) for shard in range(3)]
    assert locations == [*sorted(parts[0].glob("*.tar")), *parts[1].glob("*.tar")]
    assert (whole.classes, whole.media, whole.video) == (["blue", "red"], {"image"}, None)
    assert [shared[1].key(row) for row in range(5)] == [other.key(row) for row in range(5)]
    back, _ = Manifest.joined([other, one])
    assert len({whole.identity, back.identity, one.identity, other.identity}) == 4


def test_without_common_classes_there_are_no_labels(parts: list[Path], tmp_path: Path) -> None:
    third = labelled_shards(tmp_path, {"c": {"green": 4}})["c"]
    whole, (one, _) = Manifest.joined([Manifest.load(parts[0]), Manifest.load(third)])
    assert whole.classes == [] and set(whole.label.tolist()) == {-1}
    assert one.label.tolist() == Manifest.load(parts[0]).label.tolist()


def test_shards_are_found_whatever_the_folders_are_called(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From relative paths, after a change of folder too, and from URLs."""
    monkeypatch.chdir(parts[0].parent)
    with http_server(parts[1]) as server:
        whole, _ = Manifest.joined([Manifest.load(parts[0].name), Manifest.load(server.url)])
        monkeypatch.chdir(tmp_path)
        locations = [whole.shard_location(shard) for shard in range(3)]
        assert [Path(location) for location in locations[:2]] == sorted(parts[0].glob("*.tar"))
        assert locations[2].startswith(server.url) and locations[2].endswith(".tar") and whole.remote
