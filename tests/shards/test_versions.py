"""Data of version 1 of the format are read, recognised and finished; tests/old_runs/set is one of its data sets."""

import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making_images import contents

from pipeline.cli import main
from shards.build import build
from shards.files import ShardError
from shards.index import index_tars
from shards.manifest import Dataset, Manifest
from shards.preview import write_preview
from shards.tables.columns import JPEG_COLUMNS, MANIFEST_SCHEMA, OPTIONAL
from shards.verify import verify

OLD = Path(__file__).resolve().parents[1] / "old_runs" / "set"
COLUMNS = ["key", "shard", "offset", "size", "label", "height", "width", "crc32c", "path"]  # of version 1
ADDED = [name for name in MANIFEST_SCHEMA.names if name not in COLUMNS]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images that the old data set was built from: their bytes were kept."""
    root = tmp_path_factory.mktemp("old") / "images"
    for row in pq.read_table(OLD / "manifest.parquet").to_pylist():
        path = root / row["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((OLD / "shard-000000.tar").read_bytes()[row["offset"] : row["offset"] + row["size"]])
    return root


@pytest.fixture(scope="module")
def rebuilt(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same data set as it is built now."""
    out = tmp_path_factory.mktemp("new") / "set"
    build(source, out, workers=1)
    return out


def test_a_manifest_without_the_later_columns_is_one_of_images(tmp_path: Path) -> None:
    assert pq.read_schema(OLD / "manifest.parquet").names == COLUMNS
    assert json.loads((OLD / "dataset.json").read_text())["version"] == 1
    manifest = Manifest.load(OLD)
    assert manifest.media == {"image"}
    rows = manifest.rows(2, 7, ADDED)
    assert rows.schema == pa.schema([MANIFEST_SCHEMA.field(name) for name in ADDED])
    assert rows.to_pylist() == 5 * [{name: "image" if name == "media" else None for name in ADDED}]
    assert verify(OLD) == []
    assert write_preview(OLD, tmp_path / "page.html") == 8


def test_a_data_set_of_version_1_that_was_written_by_hand_is_read(tmp_path: Path) -> None:
    image = (OLD / "shard-000000.tar").read_bytes()[512:1024]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        (tmp_path / "0.jpg").write_bytes(image)
        tar.add(tmp_path / "0.jpg", "0.jpg")
    tar_bytes = (tmp_path / "a.tar").read_bytes()
    rows = {"key": ["0"], "shard": [0], "offset": [512], "size": [len(image)], "label": [None]}
    rows |= {"height": [24], "width": [32], "crc32c": [7], "path": ["elsewhere/0.jpg"]}
    types = [pa.string(), *3 * [pa.int64()], *3 * [pa.int32()], pa.int64(), pa.string()]
    pq.write_table(pa.table(rows, pa.schema(list(zip(rows, types, strict=True)))), tmp_path / "manifest.parquet")
    shard = {"name": "a.tar", "samples": 1, "bytes": len(tar_bytes), "sha256": hashlib.sha256(tar_bytes).hexdigest()}
    identity = hashlib.sha256((tmp_path / "manifest.parquet").read_bytes()).hexdigest()
    fields = {"format": "maskfeat-shards", "version": 1, "samples": 1, "bytes": len(image), "classes": []}
    fields |= {"shards": [shard], "manifest_sha256": identity, "rejects": 0, "ignored": 0, "options": None}
    (tmp_path / "dataset.json").write_text(json.dumps(fields | {"fingerprint": ""}))
    manifest = Manifest.load(tmp_path)
    assert (manifest.media, manifest.identity) == ({"image"}, identity)
    assert (manifest.offset.tolist(), manifest.label.tolist(), manifest.crc32c.tolist()) == ([512], [-1], [7])
    assert manifest.names(0, 1) == [("0", "elsewhere/0.jpg")]
    assert manifest.rows(0, 1, ["media", "pts"]).to_pylist() == [{"media": "image", "pts": None}]


def test_a_finished_build_of_version_1_is_recognised(source: Path, tmp_path: Path) -> None:
    out = shutil.copytree(OLD, tmp_path / "set")
    before = contents(out)
    dataset, finished_before = build(source, out, workers=1)
    assert finished_before and dataset == Dataset.load(OLD)
    assert contents(out) == before


def test_an_index_is_known_by_what_it_was_known_by_in_version_1(tmp_path: Path) -> None:
    tar = shutil.copy(OLD / "shard-000000.tar", tmp_path / "a.tar")
    dataset, _ = index_tars([str(tar)], tmp_path / "out", workers=1)
    facts = [1, "index", 100_000_000, [str(tar)], [tar.stat().st_size]]
    assert dataset.fingerprint == hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["info"], "samples        8\n"),
        (["verify"], "8 samples in 1 shard: no problems found"),
        (["plan", "--nodes", "1", "--batch", "8", "--cache", "1MB"], "8 samples in 1 shard, 30.7 KB"),
    ],
)
def test_every_command_reads_version_1(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *options = arguments
    monkeypatch.setattr("sys.argv", ["maskfeat-shards", command, str(OLD), *options])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code and says in capsys.readouterr().out


def test_a_build_that_version_1_began_ends_as_if_begun_now(source: Path, rebuilt: Path, tmp_path: Path) -> None:
    """Its records have fewer columns."""
    out, old = tmp_path / "set", json.loads((OLD / "dataset.json").read_text())
    (out / ".build").mkdir(parents=True)
    for name in ("shard-000000.tar", "shard-000000.idx"):
        shutil.copy(OLD / name, out / name)
    rows = pq.read_table(OLD / "manifest.parquet").drop_columns(["shard"]).to_pydict()
    record = {"shard": old["shards"][0], "rows": rows, "rejects": []}
    (out / ".build" / "build.json").write_text(json.dumps({"fingerprint": old["fingerprint"]}))
    (out / ".build" / "shard-000000.json").write_text(json.dumps(record))
    written = (out / "shard-000000.tar").stat().st_mtime_ns
    build(source, out, workers=1)
    assert (out / "shard-000000.tar").stat().st_mtime_ns == written, "the finished shard was kept"
    assert contents(out) == contents(rebuilt)


def test_the_rows_of_images_are_those_of_version_1_and_nulls(rebuilt: Path) -> None:
    table = pq.read_table(rebuilt / "manifest.parquet")
    assert table.schema == pa.schema([field for field in MANIFEST_SCHEMA if field.name not in JPEG_COLUMNS])
    assert table.select(COLUMNS).equals(pq.read_table(OLD / "manifest.parquet"))
    assert table["media"].to_pylist() == 8 * ["image"]
    assert all(table[name].null_count == 8 for name in OPTIONAL - JPEG_COLUMNS)
    assert set(ADDED) == OPTIONAL | {"media"}
    assert json.loads((rebuilt / "dataset.json").read_text())["version"] == 2


def test_null_columns_cost_next_to_nothing(rebuilt: Path) -> None:
    """In the file, and hence whenever it is opened: what there is of them is there once a row group."""
    for group in range(pq.read_metadata(rebuilt / "manifest.parquet").num_row_groups):
        columns = pq.read_metadata(rebuilt / "manifest.parquet").row_group(group).to_dict()["columns"]
        sizes = {column["path_in_schema"].partition(".")[0]: column["total_compressed_size"] for column in columns}
        assert sum(sizes[name] for name in OPTIONAL - JPEG_COLUMNS) < 100 * len(OPTIONAL)


def test_samples_of_a_kind_that_is_not_known_are_refused(rebuilt: Path, tmp_path: Path) -> None:
    out = shutil.copytree(rebuilt, tmp_path / "set")
    for media, why in ((["hologram"], "has samples of the kind hologram, which"), ([None], "column media has nulls")):
        table = pq.read_table(rebuilt / "manifest.parquet")
        column = pa.array(7 * ["image"] + media)
        pq.write_table(table.set_column(table.column_names.index("media"), "media", column), out / "manifest.parquet")
        fields = json.loads((out / "dataset.json").read_text())
        fields["manifest_sha256"] = hashlib.sha256((out / "manifest.parquet").read_bytes()).hexdigest()
        (out / "dataset.json").write_text(json.dumps(fields))
        with pytest.raises(ShardError, match=rf"manifest\.parquet: .*{why}"):
            Manifest.load(out)
