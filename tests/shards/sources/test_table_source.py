import threading
from decimal import Decimal
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
from shards.sources.source import list_source
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


CATS_AND_DOGS = (["a.jpg", "ä b.jpg"], [0, 1], ["cat", "dog"])


@pytest.mark.parametrize(
    "text",
    [
        "path,label\nä b.jpg,dog\na.jpg,cat\n",
        "path, label\nä b.jpg, dog\na.jpg, cat\n",
        "label ,  path\ndog , ä b.jpg\n cat,a.jpg \n",
        "label,path\ndog, ä b.jpg\ncat,a.jpg\n",
        'Label, PATH\ndog, "ä b.jpg"\n"cat ",a.jpg\n',
        "filename,class\nä b.jpg,dog\na.jpg,cat\n",
        "image,target,path of something\nä b.jpg,dog,x\na.jpg,cat,y\n",
        "id,path,url,Category\n1,ä b.jpg,x,dog\n2,a.jpg,y,cat\n",
        "path;label\nä b.jpg;dog\na.jpg;cat\n",
        '"path";"note";"label"\n"ä b.jpg";"x,y";"dog"\n"a.jpg";"";"cat"\n',
        "path\tlabel\r\nä b.jpg\tdog\r\na.jpg\tcat\r\n",
        "path|label\nä b.jpg|dog\na.jpg|cat\n",
        "\n,path,label\n0,ä b.jpg,dog\n\n1,a.jpg,cat\n\n",
        '"a\nb",path,label\nx,ä b.jpg,dog\ny,a.jpg,cat\n',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_tables_as_people_write_them(text: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "list.CSV").write_bytes(text.encode(encoding))
    listing = list_source(tmp_path / "list.CSV")
    assert (listing.paths, listing.labels, listing.classes) == CATS_AND_DOGS
    assert listing.notes == ()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array([0, 2], pa.uint8()), ([0, 2], ["0", "1", "2"])),
        (pa.array([0.0, 2.0]), ([0, 2], ["0", "1", "2"])),
        (pa.array([0.0, 2.0], pa.float16()), ([0, 2], ["0", "1", "2"])),
        (pa.array([Decimal("0.00"), Decimal("2.00")]), ([0, 2], ["0", "1", "2"])),
        (["0", " 2.0 "], ([0, 2], ["0", "1", "2"])),
        (pa.array(["dog", " cat "], pa.large_string()), ([1, 0], ["cat", "dog"])),
        (pa.array(["dog", "cat"]).dictionary_encode(), ([1, 0], ["cat", "dog"])),
        (pa.array([b"dog", b"cat"]), ([1, 0], ["cat", "dog"])),
        (["dog", "2"], ([1, 0], ["2", "dog"])),
        (["hat\ns", "hat\u2028s"], ([0, 1], ["hat\ns", "hat\u2028s"])),
        (["é", "٣"], ([0, 1], ["é", "٣"])),
        (["9" * 10**6 + "x", "9" * 10**6 + ".x"], ([1, 0], ["9" * 10**6 + ".x", "9" * 10**6 + "x"])),
    ],
)
def test_labels_of_every_type_in_parquet(labels: Any, expected: tuple[list[int], list[str]], tmp_path: Path) -> None:
    for paths in (pa.array(["a.jpg", "b.jpg"], pa.large_string()), pa.array(["a.jpg", "b.jpg"]).dictionary_encode()):
        pq.write_table(pa.table({"note": [1, 2], " Class": labels, "Path ": paths}), tmp_path / "list.parquet")
        listing = list_source(tmp_path / "list.parquet")
        assert (listing.paths, listing.labels, listing.classes) == (["a.jpg", "b.jpg"], *expected)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pa.array([1.0, None]), "row 2 has no label; fill it in"),
        (pa.array([1.0, float("nan")]), "row 2 has no label; fill it in"),
        (["x", "  "], "row 2 has no label; fill it in"),
        ([1.0, 0.5], "row 2: label 0.5 is not a whole number from 0 to 99999"),
        ([1, 100_000], "row 2: label 100000 is not a whole number"),
        (["1", "9" * 5000], "row 2: label 9{100}... is not a whole number"),
        ([True, False], "row 1: label True is neither a name nor a whole number"),
        ([[1], [2]], r"row 1: label \[1\] is neither"),
        ([b"x", b"\xff"], r"row 2: label b'\\xff' is not UTF-8"),
        ([{"a": "x" * 10**6}, None], r"row 1: label .{100}\.\.\. is neither"),
    ],
)
def test_what_is_no_label_is_named_with_its_row_and_cut_short(labels: Any, message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.jpg", "b.jpg"], "label": labels}), tmp_path / "list.parquet")
    with pytest.raises(ShardError, match=message) as error:
        list_source(tmp_path / "list.parquet")
    assert str(error.value).endswith("leave out the whole column")
    assert len(str(error.value)) < len(str(tmp_path)) + 250


RECORD = {"bytes": b"\xff\xd8" * 10**5, "path": "a.jpg"}


@pytest.mark.parametrize(
    ("columns", "culprit"),
    [
        ({"images": [[RECORD]], "url_of_page": ["x"]}, "images"),
        ({"pixels": [[[1, 2], [3, 4]]]}, "pixels"),
    ],
)
def test_tables_that_embed_several_images_a_row_or_pixels_are_refused_in_one_short_line(
    columns: dict[str, Any], culprit: str, tmp_path: Path
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    with pytest.raises(
        ShardError,
        match=rf"has images in its column {culprit}, but not one file per row, .*; write them in that form, or",
    ):
        list_source(tmp_path / "list.parquet")


def test_paths_are_taken_where_images_are_embedded_beside_them_if_they_are_those_of_files(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [RECORD], "file_name": ["a.jpg"]}), tmp_path / "list.parquet")
    assert list_source(tmp_path / "list.parquet").paths == ["list.parquet/000000/a.jpg"]
    (tmp_path / "a.jpg").touch()
    assert list_source(tmp_path / "list.parquet").paths == ["a.jpg"]
    pq.write_table(pa.table({"image": [RECORD], "path": ["b.jpg"]}), tmp_path / "list.parquet")
    assert list_source(tmp_path / "list.parquet").paths == ["b.jpg"]


def test_spaces_around_a_path_count_where_a_file_is_called_so(tmp_path: Path) -> None:
    (tmp_path / " b.jpg ").write_bytes(b"12345")
    listing = list_source(table(tmp_path / "list.csv", "label,path\nx, b.jpg \ny, c.jpg \n"))
    assert (listing.paths, listing.sizes) == ([" b.jpg ", "c.jpg"], [5, 0])


def test_which_column_holds_the_labels_is_said_where_several_could(tmp_path: Path) -> None:
    source = table(tmp_path / "list.csv", "path,Class_name ,target,note,class_id\na.jpg,cat,x,,3\n")
    listing = list_source(source)
    assert (listing.labels, listing.classes) == ([0], ["cat"])
    assert listing.notes == (f"{source}: labels are those of the column Class_name, not of target, class_id",)


@pytest.mark.parametrize(
    ("labels", "mixed"),
    [(["0", "10", "dog"], True), (["007", "3.0"], True), (["dog", "cat"], False), (["0", "2.0"], False)],
)
def test_a_line_says_that_labels_are_numbers_and_names(labels: list[str], mixed: bool, tmp_path: Path) -> None:
    rows = "".join(f"{number}.jpg,{label}\n" for number, label in enumerate(labels))
    notes = list_source(table(tmp_path / "list.csv", f"path,label\n{rows}")).notes
    assert [": labels are partly numbers (such as " in note for note in notes] == [True] * mixed


def test_a_table_without_labels_says_which_columns_would_be_labels(tmp_path: Path) -> None:
    source = table(tmp_path / "list.csv", "path,tag\na.jpg,x\n")
    (note,) = list_source(source).notes
    assert note.startswith(f"{source}: no classes: no column is called label, labels, class, ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg,cat\nb.jpg,dog\n", r"has no header: its first line begins with a\.jpg; put a line"),
        ("/x/a.PNG;cat\nb.jpg;dog\n", "has no header"),
        ("file,image,label\na.jpg,b.jpg,1\n", "its columns file and image may both list the files; rename the right"),
        ("path,label,Label\na.jpg,1,2\n", "has two columns label; rename or leave out one"),
        ("path,PATH \na.jpg,b.jpg\n", "has two columns path; rename or leave out one"),
        (
            ",".join(f"column-{i}" for i in range(5000)) + "\n",
            r"has no column `path` among column-0, .*column-9, \.\.\.; rename",
        ),
        ("path\n" + "a" * 3000 + "\n" + "a" * 3000, r"row 2: a{100}\.\.\. is in row 1 already"),
        ("path,target\na.jpg,0.37\n", "row 1: target 0.37 is not a whole number .*leave out the whole column"),
        ("path,label\nä.jpg,cat\n".encode("latin-1"), r"is not UTF-8 .*byte 11\): .*`iconv -f LATIN1 -t UTF-8`"),
        ("path,label\na.jpg,cat\n".encode("utf-16-le"), r"is not UTF-8 \(it contains zero bytes"),
        ("path,label\na.jpg,cat\n".encode("utf-32"), r"is not UTF-8 \(it contains zero bytes"),
        (b"\xff\xfe", "is empty; its first line has to name the columns"),
        ("image_id,label\na,1\n", "has no column `path` among image_id, label"),
        ("", "is empty; its first line has to name the columns"),
        ("path\n", "has no rows"),
        ("path,label\na.jpg,1\n ,2\n", r"row 2 has no usable path \(' '\)"),
        ("path,label\na.jpg,1\nb.jpg,\n", "row 2 has no label; fill it in"),
        ("path,label\na.jpg,1\nb,c.jpg,2\n", "row 2 has more or fewer fields than the header; quote its commas"),
        ("path,label\na.jpg\n", "row 1 has more or fewer fields"),
        ("path,label\na.jpg,1\nb.jpg,-1\n", "row 2: label -1 is not a whole number from 0 to 99999; correct it"),
        ("path,label\na.jpg,1\nb.jpg,2\na.jpg,1\n", r"row 3: a\.jpg is in row 1 already"),
        ("path\n.\n", r"row 1: \. is not a file"),
        ("path\nnone://a.jpg\n", r"row 1: none://a\.jpg cannot be read: its protocol is not one of file, http"),
        (
            "path\nhttps://h/a.jpg\nhttps://me:pass@h/b.jpg\n",
            r"row 2: https://h/b\.jpg contains .*environment$",
        ),
        ("path\nhttps://h/a.jpg?w=1\nhttps://h/a.jpg?sig=x\n", r"row 2: https://h/a\.jpg contains credentials"),
        ('path\n"a.jpg\n', "not a readable UTF-8 .csv table"),
    ],
)
def test_bad_tables_are_errors_that_name_the_row(text: str | bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ShardError, match=rf"list\.csv: {message}") as error:
        list_source(tmp_path / "list.csv")
    assert len(str(error.value)) < len(str(tmp_path)) + 300


def test_bad_parquet_files_are_errors(tmp_path: Path) -> None:
    source = tmp_path / "list.parquet"
    for column, message in [([None], r"row 1 has no usable path \(None\)"), ([7], r"row 1 has no usable path \(7\)")]:
        pq.write_table(pa.table({"path": column}), source)
        with pytest.raises(ShardError, match=message):
            list_source(source)
    pq.write_table(pa.table({"path": ["a.jpg"], "label": [0.5]}), source)
    with pytest.raises(ShardError, match=r"row 1: label 0\.5 is not a whole number from 0 to 99999"):
        list_source(source)
    source.write_bytes(b"PAR1")
    with pytest.raises(ShardError, match=r"list\.parquet: not a readable \.parquet table"):
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
    with pytest.raises(ShardError, match="contains a data set of other files or options"):
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
    monkeypatch.setattr("shards.making.shard._DEADLINE", 4.0)
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
        {"reason": "unreachable", "detail": "503 Service Unavailable; tried for 4 s"},
        {"reason": "unreadable", "detail": "403 Forbidden"},
    ]


def test_urls_are_read_several_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_tree(tmp_path / "images", 16, ())
    all_at_once = threading.Barrier(16, timeout=20)

    def answer(url: str, *place: Any, **options: Any) -> bytes:
        all_at_once.wait()
        return (images / Path(url).name).read_bytes()

    monkeypatch.setattr("shards.making.shard.read", answer)
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
