"""Parquet files that hold the images themselves, as `datasets` writes them: alone, several, and in folders."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making_images import contents, encoded, picture

from shards.build import build
from shards.files import ShardError
from shards.manifest import Dataset, Manifest
from shards.sources import parquet
from shards.sources.source import list_source
from shards.storage import read
from shards.tables.rejects import load_rejects
from shards.verify import verify

CLASSES = ["cat", "an owl"]


def features(column: str = "label", names: Any = CLASSES) -> dict[bytes, bytes]:
    """Return the metadata by which `datasets` tells the classes of a column."""
    kinds = {"image": {"_type": "Image"}, column: {"names": names, "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": kinds}}).encode()}


def images(first: int, count: int) -> list[bytes]:
    return [encoded(picture(number), "JPEG") for number in range(first, first + count)]


def write(
    path: Path,
    files: list[bytes | None],
    labels: list[int] | None = None,
    names: list[str | None] | None = None,
    rows: int = 3,
    **columns: Any,
) -> None:
    """Write a table as `datasets` does, with row groups of so many rows."""
    records = [{"bytes": data, "path": name} for data, name in zip(files, names or [None] * len(files), strict=True)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = {"image": pa.array(records, kind), **columns} | ({} if labels is None else {"label": labels})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table).replace_schema_metadata(features()), path, row_group_size=rows)


def stored(out: Path) -> dict[str, tuple[bytes, str | None]]:
    """Return the bytes and the class of every sample, by its path."""
    manifest = Manifest.load(out)
    found = {}
    for row, (_, path) in enumerate(manifest.names(0, len(manifest))):
        data = read(manifest.shard_location(manifest.shard[row]), int(manifest.offset[row]), int(manifest.size[row]))
        found[path] = (data, manifest.classes[manifest.label[row]] if manifest.label[row] >= 0 else None)
    return found


def test_every_file_is_stored_with_its_name_and_the_name_of_its_class(tmp_path: Path) -> None:
    files = images(0, 8)
    names = ["a.jpg", None, "/home/me/b c.jpg", "x/a.jpg", *[None] * 4]
    write(tmp_path / "list.parquet", files, [0, 1] * 4, names)
    out = tmp_path / "out"
    build(tmp_path / "list.parquet", out, samples_per_shard=4, workers=1)
    assert Dataset.load(out).classes == CLASSES
    named = ["000000/a.jpg", "000001", "000002/b c.jpg", "000003/a.jpg", *(f"{row:06d}" for row in range(4, 8))]
    assert stored(out) == {
        f"list.parquet/{name}": (data, label) for name, data, label in zip(named, files, CLASSES * 4, strict=True)
    }
    assert verify(out) == []


def test_the_parts_of_a_split_are_one_source_and_rows_of_a_group_stay_together(tmp_path: Path) -> None:
    files = images(0, 24)
    repository = tmp_path / "repository"
    for part in range(2):
        write(repository / "data" / f"train-0000{part}-of-00002.parquet", files[12 * part : 12 * part + 12], [1] * 12)
    (repository / "README.md").touch()
    out = tmp_path / "out"
    build(repository / "data", out, samples_per_shard=6, workers=1)
    assert sorted(data for data, _ in stored(out).values()) == sorted(files)
    assert verify(out) == []
    paths = [path for _, path in Manifest.load(out).names(0, 24)]
    groups = [(path.split("/")[0], int(path.split("/")[1]) // 3) for path in paths]
    changes = sum(a != b for a, b in pairwise(groups))
    assert changes == 7 and groups != sorted(groups), "8 groups of 3 rows, in an order of the seed"
    patterns = (repository / "data" / "train-*.parquet", repository / "d*" / "*.parquet")
    for number, source in enumerate((repository, *patterns)):
        found = list_source(source)
        assert (len(found.paths), found.classes) == (24, CLASSES)
        build(source, tmp_path / str(number), samples_per_shard=6, workers=2)
        assert sorted(stored(tmp_path / str(number)).values()) == sorted(stored(out).values())


def test_workers_and_a_second_start_change_no_byte(tmp_path: Path) -> None:
    write(tmp_path / "list.parquet", images(0, 12), [0] * 12)
    source = tmp_path / "list.parquet"
    first, _ = build(source, tmp_path / "one", samples_per_shard=5, workers=1)
    build(source, tmp_path / "two", samples_per_shard=5, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert build(source, tmp_path / "one", samples_per_shard=5) == (first, True)
    write(source, [*images(0, 11), b""], [0] * 12)
    with pytest.raises(ShardError, match="other files or options"):
        build(source, tmp_path / "one", samples_per_shard=5)


def test_bad_rows_are_rejects_and_end_nothing(tmp_path: Path) -> None:
    files = [*images(0, 3), None, b"", b"text"]
    write(tmp_path / "list.parquet", files, [0] * 6, ["a.jpg"] * 6)
    build(tmp_path / "list.parquet", tmp_path / "out", workers=1)
    assert load_rejects(tmp_path / "out") == [
        ("list.parquet/000003/a.jpg", "empty", "its row has no bytes"),
        ("list.parquet/000004/a.jpg", "empty", "0 bytes"),
        ("list.parquet/000005/a.jpg", "not an image", "not a readable JPEG, PNG, WEBP, BMP, TIFF, GIF file"),
    ]


def test_a_damaged_row_group_costs_its_rows_alone(tmp_path: Path) -> None:
    source = tmp_path / "list.parquet"
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    records = pa.array([{"bytes": data, "path": None} for data in images(0, 6)], kind)
    pq.write_table(pa.table({"image": records}), source, row_group_size=3, use_dictionary=False, compression="zstd")
    group = pq.ParquetFile(source).metadata.row_group(1).column(0)
    data = bytearray(source.read_bytes())
    data[group.data_page_offset : group.data_page_offset + 9] = b"\xff" * 9
    source.write_bytes(data)
    build(source, tmp_path / "out", workers=1)
    assert [reason for _, reason, _ in load_rejects(tmp_path / "out")] == ["unreadable"] * 3


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("name", ["jpg", "whatever"])
def test_plain_bytes_are_files_too(kind: pa.DataType, name: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({name: pa.array(images(0, 2), kind), "cls": ["b", "a"]}), tmp_path / "list.parquet")
    build(tmp_path / "list.parquet", tmp_path / "out", workers=1)
    first, second = images(0, 2)
    assert stored(tmp_path / "out") == {"list.parquet/000000": (first, "b"), "list.parquet/000001": (second, "a")}


def test_of_several_columns_of_files_the_one_called_image_is_taken_or_else_one_has_to_be_named(tmp_path: Path) -> None:
    write(tmp_path / "list.parquet", images(0, 2), mask=[b"1", b"2"])
    listing = list_source(tmp_path / "list.parquet")
    assert f"{tmp_path}/list.parquet: files are those of the column image, not of mask" in listing.notes
    pq.write_table(pa.table({"left": [b"1"], "right": [b"2"]}), tmp_path / "list.parquet")
    with pytest.raises(ShardError, match="its columns left and right may both contain the files; rename the right"):
        list_source(tmp_path / "list.parquet")


def test_a_test_set_without_labels_has_no_classes_and_one_with_some_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "list.parquet", images(0, 2), [-1, -1])
    listing = list_source(tmp_path / "list.parquet")
    assert (listing.labels, listing.classes) == ([], [])
    assert listing.notes == (f"{tmp_path}/list.parquet: no classes: every label is -1",)
    write(tmp_path / "list.parquet", images(0, 2), [-1, 0])
    with pytest.raises(ShardError, match="row 1 has no label"):
        list_source(tmp_path / "list.parquet")
    write(tmp_path / "list.parquet", images(0, 2), [0, 2])
    with pytest.raises(ShardError, match="row 2: label 2 is none of its 2 classes"):
        list_source(tmp_path / "list.parquet")


@pytest.mark.parametrize("names", [None, [], [1, 2], ["a", "a"], {"a": 1}])
def test_odd_names_of_classes_leave_numbers(names: Any, tmp_path: Path) -> None:
    metadata = features(names=names) if names is not None else {b"huggingface": b"{"}
    table = pa.table({"image": images(0, 2), "label": [0, 1]}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "list.parquet")
    assert list_source(tmp_path / "list.parquet").classes == ["0", "1"]


@pytest.mark.parametrize(
    ("tables", "splits", "remedy"),
    [
        (("data/test-00000-of-00001", "data/train-00000-of-00002"), "test, train", "data/train-*.parquet"),
        (("train", "validation"), "train, validation", "train.parquet"),
        (("default/test/0000", "default/train/0000", "default/train/0001"), "test, train", "default/train"),
        (("extra-00000-of-00001", "test-00000-of-00001"), "extra, test", "extra-*.parquet"),
    ],
)
def test_the_splits_of_a_data_set_are_not_mixed(
    tables: tuple[str, ...], splits: str, remedy: str, tmp_path: Path
) -> None:
    for table in tables:
        write(tmp_path / f"{table}.parquet", images(0, 1), [0])
    with pytest.raises(ShardError) as error:
        list_source(tmp_path)
    root = str(tmp_path)
    assert f"{root}: contains the parts of a data set ({splits}); build each by itself: " in str(error.value)
    assert f"maskfeat-shards build {root}/{remedy} ..." in str(error.value).replace("'", "")
    expected = sum(remedy.split(".")[0].strip("*") in table for table in tables)
    assert len(list_source(tmp_path / remedy).paths) == expected


@pytest.mark.parametrize(("columns", "classes"), [(("breed",), CLASSES), (("breed", "species"), [])])
def test_a_single_column_of_classes_holds_the_labels_whatever_its_name(
    columns: tuple[str, ...], classes: list[str], tmp_path: Path
) -> None:
    kinds = {name: {"names": CLASSES, "_type": "ClassLabel"} for name in columns}
    metadata = {b"huggingface": json.dumps({"info": {"features": kinds}}).encode()}
    table = pa.table({"image": images(0, 2), **{name: [1, 0] for name in columns}}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "list.parquet")
    assert list_source(tmp_path / "list.parquet").classes == classes


def test_missing_parts_are_told(tmp_path: Path) -> None:
    write(tmp_path / "train-00001-of-00003.parquet", images(0, 1), [0])
    assert list_source(tmp_path).notes == (f"{tmp_path}: train: 1 of its 3 files are there",)


def test_tables_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", images(0, 1), [0])
    write(tmp_path / "b.parquet", images(0, 1))
    with pytest.raises(ShardError, match=r"/b\.parquet: has other classes than a\.parquet; build each by itself"):
        list_source(tmp_path)
    pq.write_table(pa.table({"path": ["1.jpg"]}), tmp_path / "b.parquet")
    with pytest.raises(ShardError, match=r"/b\.parquet: does not contain files, unlike those beside it"):
        list_source(tmp_path)


def test_row_groups_that_are_too_large_are_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "list.parquet", images(0, 8), [0] * 8, rows=8)
    monkeypatch.setattr(parquet, "AT_MOST", 5000)
    with pytest.raises(ShardError, match=r"its row group 0 has .* GB of files.*row_group_size=100"):
        list_source(tmp_path / "list.parquet")


def test_a_row_group_is_read_once_for_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "list.parquet", images(0, 12), [0] * 12)
    parquet._column_of.cache_clear()
    build(tmp_path / "list.parquet", tmp_path / "out", samples_per_shard=6, workers=1)
    assert parquet._column_of.cache_info().misses == 4
