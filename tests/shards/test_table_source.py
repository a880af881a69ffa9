import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making_images import contents, make_tree
from servers import S3, http_server

from shards.build import build
from shards.files import ShardError
from shards.manifest import Manifest
from shards.source import list_source
from shards.storage import read, upload


def table(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_csv_lists_paths_and_class_names_in_any_order(tmp_path: Path) -> None:
    make_tree(tmp_path / "images", 3)
    outside = tmp_path / "b, with a comma.jpg"
    outside.write_bytes(b"12345")
    rows = f'label,path,note\nsofa,images/bee/001.JPG,x\nbed,images/ant/000.JPG,\nsofa,"{outside}",y\nbed,gone.jpg,z\n'
    listing = list_source(table(tmp_path / "list.csv", rows))
    assert listing.paths == [str(outside), "gone.jpg", "images/ant/000.JPG", "images/bee/001.JPG"]
    assert (listing.labels, listing.classes) == ([1, 0, 0, 1], ["bed", "sofa"])
    assert listing.sizes[:2] == [5, 0]
    item = listing.item(2)
    assert read(item.file, item.offset, item.size) == (tmp_path / "images/ant/000.JPG").read_bytes()
    assert listing.item(0).file == str(outside)


def test_integer_labels_mean_what_they_say(tmp_path: Path) -> None:
    columns = {"path": ["b.jpg", "a.jpg"], "label": pa.array([0, 3], pa.int64())}
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    listing = list_source(tmp_path / "list.parquet")
    assert (listing.paths, listing.labels, listing.classes) == (["a.jpg", "b.jpg"], [3, 0], ["0", "1", "2", "3"])
    listing = list_source(table(tmp_path / "list.csv", "path,label\nb.jpg,0\na.jpg,3\n"))
    assert (listing.labels, listing.classes) == ([3, 0], ["0", "1", "2", "3"])
    listing = list_source(table(tmp_path / "names.csv", "path,label\nb.jpg,007\na.jpg,3\n"))
    assert (listing.labels, listing.classes) == ([1, 0], ["007", "3"])


def test_without_labels_there_are_no_classes(tmp_path: Path) -> None:
    listing = list_source(table(tmp_path / "list.csv", "\ufeffpath\na.jpg\n"))
    assert (listing.paths, listing.labels, listing.classes) == (["a.jpg"], [], [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.jpg,1\n", "has no column `path` among file, label"),
        ("", "has no column `path` among none"),
        ("path\n", "has no rows"),
        ("path,label\na.jpg,1\n ,2\n", r"row 2 has no usable path \(' '\)"),
        ("path,label\na.jpg,1\nb.jpg,\n", "row 2 has no label; fill it in"),
        ("path,label\na.jpg,1\nb,c.jpg,2\n", "row 2 has more or fewer fields than the header; quote its commas"),
        ("path,label\na.jpg\n", "row 1 has more or fewer fields"),
        ("path,label\na.jpg,1\nb.jpg,-1\n", "row 2: label -1 is not in 0 to 99999"),
        ("path,label\na.jpg,1\nb.jpg,2\na.jpg,1\n", r"row 3: a\.jpg is in row 1 already"),
        ("path\n.\n", r"row 1: \. is not a file"),
        ("path\nnone://a.jpg\n", r"row 1: none://a\.jpg cannot be read: its protocol is not one of file, http"),
        (
            "path\nhttps://h/a.jpg\nhttps://me:pass@h/b.jpg\n",
            r"row 2: https://h/b\.jpg holds .*environment$",
        ),
        ("path\nhttps://h/a.jpg?w=1\nhttps://h/a.jpg?sig=x\n", r"row 2: https://h/a\.jpg holds credentials"),
        ('path\n"a.jpg\n', "not a readable UTF-8 .csv table"),
    ],
)
def test_bad_tables_are_errors_that_name_the_row(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=rf"list\.csv: {message}"):
        list_source(table(tmp_path / "list.csv", text))


def test_bad_parquet_files_are_errors(tmp_path: Path) -> None:
    source = tmp_path / "list.parquet"
    for column, message in [([None], r"row 1 has no usable path \(None\)"), ([7], r"row 1 has no usable path \(7\)")]:
        pq.write_table(pa.table({"path": column}), source)
        with pytest.raises(ShardError, match=message):
            list_source(source)
    pq.write_table(pa.table({"path": ["a.jpg"], "label": [0.5]}), source)
    with pytest.raises(ShardError, match=r"row 1: label 0\.5 is neither a name nor an integer"):
        list_source(source)
    source.write_bytes(b"PAR1")
    with pytest.raises(ShardError, match=r"list\.parquet: not a readable UTF-8 \.parquet table"):
        list_source(source)


def test_rows_in_another_order_and_other_workers_change_no_byte(tmp_path: Path) -> None:
    images = make_tree(tmp_path / "images", 9)
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in images.rglob("*.*")]
    rows.append("images/gone.jpg,ant")
    for name, order in (("1", sorted(rows)), ("2", sorted(rows, reverse=True))):
        source = table(tmp_path / f"{name}.csv", "\n".join(["path,label", *order]))
        build(source, tmp_path / name, samples_per_shard=4, workers=int(name))
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    rejects = pq.read_table(tmp_path / "1" / "rejects.parquet").to_pylist()
    assert rejects == [
        {"path": "images/gone.jpg", "reason": "unreadable", "detail": "No such file or directory", "size": 0}
    ]


def test_labels_are_part_of_what_is_built(tmp_path: Path) -> None:
    make_tree(tmp_path / "images", 2)
    text = "path,label\nimages/ant/000.JPG,x\nimages/bee/001.JPG,y\n"
    build(table(tmp_path / "list.csv", text), tmp_path / "out", workers=1)
    table(tmp_path / "list.csv", text.replace("JPG,y", "JPG,x"))
    with pytest.raises(ShardError, match="holds a data set of other images or options"):
        build(tmp_path / "list.csv", tmp_path / "out", workers=1)


def test_images_of_an_object_store_are_read_and_missing_ones_rejected(tmp_path: Path, s3: S3) -> None:
    images, store = make_tree(tmp_path / "images", 5, ()), f"{s3.bucket}/table"
    (images / "empty.jpg").write_bytes(b"")
    for path in images.iterdir():
        upload(path, f"{store}/{path.name}")
    rows = [f"{store}/{path.name}" for path in images.iterdir()] + [f"{store}/gone.jpg"]
    dataset, _ = build(table(tmp_path / "list.csv", "\n".join(["path", *rows])), tmp_path / "out", workers=1)
    manifest = Manifest.load(tmp_path / "out")
    assert dataset.samples == 5
    tar = (tmp_path / "out" / "shard-000000.tar").read_bytes()
    for sample in range(5):
        at, size = manifest.offset[sample], manifest.size[sample]
        assert tar[at : at + size] == (images / manifest.path(sample).removeprefix(f"{store}/")).read_bytes()
    assert pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist() == [
        {"path": f"{store}/empty.jpg", "reason": "empty", "detail": "0 bytes", "size": None},
        {"path": f"{store}/gone.jpg", "reason": "unreadable", "detail": "404 Not Found", "size": None},
    ]
    assert read(f"{store}/000.JPG", 3, 5) == (images / "000.JPG").read_bytes()[3:8]


def test_urls_that_do_not_answer_are_told_from_those_that_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.writer._DEADLINE", 1.0)
    images = make_tree(tmp_path / "images", 3, ())
    with http_server(images) as server:
        server.fail(503, times=100, match="000")
        server.fail(403, match="001")
        source = table(
            tmp_path / "list.csv", "\n".join(["path", *(f"{server.url}/{path.name}" for path in images.iterdir())])
        )
        build(source, tmp_path / "out", workers=1)
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet", columns=["reason", "detail"]).to_pylist()
    assert rejects == [
        {"reason": "unreachable", "detail": "503 Service Unavailable; tried for 1 s"},
        {"reason": "unreadable", "detail": "403 Forbidden"},
    ]


def test_urls_are_read_several_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_tree(tmp_path / "images", 16, ())
    all_at_once = threading.Barrier(16, timeout=20)

    def answer(url: str, *place: Any, **options: Any) -> bytes:
        all_at_once.wait()
        return (images / Path(url).name).read_bytes()

    monkeypatch.setattr("shards.writer.read", answer)
    rows = [f"https://host/{path.name}" for path in images.iterdir()]
    dataset, _ = build(table(tmp_path / "list.csv", "\n".join(["path", *rows])), tmp_path / "out", workers=1)
    assert (dataset.samples, dataset.rejects) == (16, 0)


def test_images_behind_http_give_the_bytes_of_the_same_images_on_disk(tmp_path: Path) -> None:
    images = make_tree(tmp_path / "images", 6)
    paths = sorted(str(path.relative_to(tmp_path)) for path in images.rglob("*.*"))
    with http_server(tmp_path) as server:
        rows = [f"{server.url}/{path},{Path(path).parent}" for path in [*paths, "images/ant/gone.jpg"]]
        source = table(tmp_path / "list.csv", "\n".join(["path,label", *rows]))
        for workers in (1, 2):
            server.fail(503, times=2, match="0")  # in the names of those that are there
            server.reset(times=2, match="0")
            build(source, tmp_path / str(workers), samples_per_shard=3, workers=workers)
        assert len(server.requests) == 2 * (7 + 4)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    manifest = Manifest.load(tmp_path / "1")
    assert sorted(manifest.path(sample) for sample in range(6)) == [f"{server.url}/{path}" for path in paths]
    assert sorted(manifest.size) == sorted((tmp_path / path).stat().st_size for path in paths)
