from pathlib import Path

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making_images import contents, encoded, make_tree, picture
from resealing import Change, put, retype, rewrite

from shards.build import build
from shards.files import ShardError
from shards.manifest import Manifest
from shards.tables.duplicates import find_duplicates, load_duplicates
from shards.verify import verify


def test_copies_are_listed_with_the_first_of_their_bytes(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", 12)
    for name in ("ant/x.jpg", "bee/y.jpg", "bee/z.jpg"):
        (source / name).write_bytes((source / "ant/000.JPG").read_bytes())
    (source / "bee/q.png").write_bytes((source / "bee/003.png").read_bytes())
    for workers in (1, 2):
        build(source, tmp_path / str(workers), samples_per_shard=4, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    manifest = Manifest.load(tmp_path / "1")
    groups = [{"ant/000.JPG", "ant/x.jpg", "bee/y.jpg", "bee/z.jpg"}, {"bee/003.png", "bee/q.png"}]
    expected = []
    for group in groups:
        first, *others = [sample for sample in range(len(manifest)) if manifest.path(sample) in group]
        expected += [(other, first) for other in others]
    assert load_duplicates(tmp_path / "1", len(manifest)) == sorted(expected)
    assert len(expected) == 4


def test_duplicates_are_those_of_the_stored_bytes(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for number, file_format in enumerate(("BMP", "TIFF")):
        (tmp_path / "source" / f"{number}.bmp").write_bytes(encoded(picture(0), file_format))
    build(tmp_path / "source", tmp_path / "out", workers=1)
    assert load_duplicates(tmp_path / "out", 5) == [(1, 0)]


def test_an_equal_size_and_checksum_alone_are_no_duplicate(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"aaaabbbbaaaa")
    columns = {"shard": [0] * 3, "offset": [0, 4, 8], "size": [4] * 3, "crc32c": [google_crc32c.value(b"any")] * 3}
    pq.write_table(pa.table(columns), tmp_path / "manifest.parquet")
    found = find_duplicates(tmp_path / "manifest.parquet", [str(tmp_path / "0.tar")])
    assert found.to_pylist() == [{"id": 2, "first_id": 0}]


def test_a_missing_list_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"duplicates\.parquet: is missing"):
        load_duplicates(tmp_path, 5)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (put("id", 0, 13), "its ids are not"),
        (put("id", 0, -1), "its ids are not"),
        (put("first_id", 0, 12), "its ids are not"),
        (put("first_id", 0, -2), "its ids are not"),
        (put("id", 0, None), "column id has nulls"),
        (retype("id", pa.string()), "column id is of type string"),
    ],
)
def test_duplicates_of_no_sample_are_refused(root: Path, change: Change, why: str) -> None:
    assert len(load_duplicates(root, 13)) == 1
    rewrite(root, change, "duplicates.parquet")
    with pytest.raises(ShardError, match=rf"duplicates\.parquet: is not a maskfeat-shards table \({why}"):
        load_duplicates(root, 13)
    (problem,) = verify(root)
    assert problem.file == "duplicates.parquet" and why in problem.what
