"""Data sets whose checksums are right and whose contents are not: one line that names the file, or the row."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making_images import encoded, make_tar, make_tree, picture

from shards import cli
from shards.build import build
from shards.dataset import Dataset
from shards.duplicates import load_duplicates
from shards.files import ShardError, parse_json
from shards.index import index_tars
from shards.manifest import Manifest
from shards.rejects import count_rejects
from shards.verify import verify

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 images of 2 classes in 3 shards, one image twice, and a reject."""
    root = tmp_path_factory.mktemp("sealed")
    source = make_tree(root / "source", 12)
    (source / "ant" / "bad.jpg").write_bytes(b"")
    shutil.copy(source / "ant" / "000.JPG", source / "bee" / "twin.jpg")
    build(source, root / "out", samples_per_shard=5, workers=1)
    return root / "out"


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "out")
    return tmp_path / "out"


def describe(root: Path, **fields: Any) -> None:
    """Give dataset.json other fields."""
    path = root / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def seal(root: Path, content: bytes) -> None:
    """Make these the bytes of the manifest, by right of its checksum."""
    (root / "manifest.parquet").write_bytes(content)
    describe(root, manifest_sha256=hashlib.sha256(content).hexdigest())


def rewrite(root: Path, change: Change, name: str = "manifest.parquet", **options: Any) -> None:
    """Change a table, given as column name to list or array, and seal it."""
    columns = {column.removesuffix("!"): values for column, values in pq.read_table(root / name).to_pydict().items()}
    schema = pq.read_schema(root / name)
    arrays = {column: pa.array(values, schema.field(column).type) for column, values in columns.items()}
    changed = change(arrays) or arrays
    pq.write_table(pa.table(changed), root / name, **options)
    if name == "manifest.parquet":
        seal(root, (root / name).read_bytes())


def put(column: str, row: int, value: Any, kind: pa.DataType | None = None) -> Change:
    """A change of one value, and of the type of its column."""

    def change(arrays: dict[str, Any]) -> None:
        values = arrays[column].to_pylist()
        values[row] = value
        arrays[column] = pa.array(values, kind or arrays[column].type)

    return change


def retype(column: str, kind: pa.DataType) -> Change:
    return lambda arrays: arrays.update({column: arrays[column].cast(kind)})


IMPOSSIBLE = {
    "a negative offset": (put("offset", 3, -1), "sample 3: its offset and size are not inside its tar"),
    "a negative size": (put("size", 3, -5), "sample 3: its offset and size"),
    "no size": (put("size", 4, 0), "sample 4: its offset and size"),
    "a huge size": (put("size", 3, 2**40), "sample 3: its offset and size"),
    "sizes that overflow": (put("size", 12, 2**63 - 1), "sample 12: its offset and size"),
    "a huge offset": (put("offset", 0, 2**63 - 1), "sample 0: its offset and size"),
    "no height": (put("height", 1, 0), "sample 1: its height and width are no size"),
    "a negative width": (put("width", 1, -1), "sample 1: its height and width are no size"),
    "a huge height": (put("height", 1, 2**31 - 1), "sample 1: it has more pixels than the build allowed"),
    "a negative label": (put("label", 2, -7), "sample 2: its label is not that of a class"),
    "a label of no class": (put("label", 2, 2), "sample 2: its label is not that of a class"),
    "a null": (put("size", 2, None), "column size has nulls"),
    "a null shard": (put("shard", 2, None), "column shard has nulls"),
    "shards out of order": (put("shard", 0, 2), "disagree on the samples of shards"),
    "a shard too much": (put("shard", 12, 3), "disagree on the samples of shards"),
    "a negative shard": (put("shard", 0, -1), "disagree on the samples of shards"),
    "a row less": (lambda of: {name: values[1:] for name, values in of.items()}, "disagree on the samples of shards"),
    "no rows": (lambda of: {name: values[:0] for name, values in of.items()}, "disagree on the samples of shards"),
    "no column": (lambda of: of.pop("height") and None, "0 columns are named height"),
    "no keys": (lambda of: of.pop("key") and None, "0 columns are named key"),
    "a column twice": (
        lambda of: pa.table([*of.values(), of["size"]], names=[*of, "size"]),
        "2 columns are named size",
    ),
    "floats": (retype("offset", pa.float64()), "column offset is of type double instead of int64"),
    "text for numbers": (retype("size", pa.string()), "column size is of type string instead of int64"),
    "numbers for text": (lambda of: of.update(key=of["size"]), "column key is of type int64 instead of string"),
    "bytes for text": (retype("path", pa.binary()), "column path is of type binary instead of string"),
    "booleans": (lambda of: of.update(label=pa.array([True] * 13)), "column label is of type bool instead of int32"),
    "a list": (lambda of: of.update(size=pa.array([[1]] * 13)), "column size is of type list<"),
    "a struct": (lambda of: of.update(size=pa.array([{"a": 1}] * 13)), "column size is of type struct<"),
    "a checksum too large": (put("crc32c", 5, 2**32, pa.int64()), "4294967296"),
    "a label beyond 32 bits": (put("label", 5, 2**40, pa.int64()), "1099511627776"),
}


@pytest.mark.parametrize("case", sorted(IMPOSSIBLE))
def test_a_row_that_cannot_be_true_is_refused_when_the_manifest_is_loaded(root: Path, case: str) -> None:
    change, why = IMPOSSIBLE[case]
    rewrite(root, change)
    with pytest.raises(ShardError) as caught:
        Manifest.load(root)
    assert str(caught.value).startswith(str(root)) and why in str(caught.value)
    assert "\n" not in str(caught.value) and "again" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"PAR1" + b"\xff" * 60 + b"PAR1", b"PAR1\xff\xff\xff\x7fPAR1", b"not Parquet" * 99]
)
def test_what_is_not_parquet_is_refused(root: Path, content: bytes) -> None:
    seal(root, content)
    with pytest.raises(ShardError, match=r"manifest\.parquet: is not a maskfeat-shards table \(.*\); build or index"):
        Manifest.load(root)
    for name, load in (("rejects", lambda: count_rejects(root)), ("duplicates", lambda: load_duplicates(root, 13))):
        (root / f"{name}.parquet").write_bytes(content)
        with pytest.raises(ShardError, match=rf"{name}\.parquet: is not a maskfeat-shards table"):
            load()


def test_wider_integers_long_text_and_other_columns_are_read(root: Path) -> None:
    before = Manifest.load(root)

    def widen(of: dict[str, Any]) -> None:
        for name in ("shard", "label", "height", "width", "crc32c"):
            of[name] = of[name].cast(pa.int64())
        of |= {"key": of["key"].cast(pa.large_string()), "offset": of["offset"].cast(pa.uint64()), "more": of["key"]}

    rewrite(root, widen)
    after = Manifest.load(root)
    for column in ("shard", "offset", "size", "label", "height", "width", "crc32c"):
        values, expected = getattr(after, column), getattr(before, column)
        assert values.dtype == expected.dtype and values.tolist() == expected.tolist()
    assert verify(root) == []


MISDESCRIBED: dict[str, tuple[Any, str]] = {
    "shards that are no list": ({"shards": 7}, "shards: Input should be a valid list"),
    "no shards": ({"shards": []}, "there is at least one"),
    "classes in one text": ({"classes": "abc"}, "classes: Input should be a valid list"),
    "numbers for classes": ({"classes": ["a", 5]}, "classes.1"),
    "null for classes": ({"classes": None}, "classes: "),
    "a class twice": ({"classes": ["ant", "ant"]}, "classes: a name is there twice"),
    "samples as text": ({"samples": "13"}, "samples: Input should be a valid integer"),
    "samples as a float": ({"samples": 13.0}, "samples: Input should be a valid integer"),
    "samples as a truth": ({"samples": True}, "samples: Input should be a valid integer"),
    "no samples": ({"samples": 0}, "samples: Input should be greater"),
    "negative bytes": ({"bytes": -1}, "bytes: Input should be greater"),
    "huge bytes": ({"bytes": 10**400}, "bytes: Input should be less"),
    "negative rejects": ({"rejects": -1}, "rejects: Input should be greater"),
    "a list for ignored": ({"ignored": []}, "ignored: Input should be a valid integer"),
    "a number for the checksum": ({"manifest_sha256": 5}, "manifest_sha256: "),
    "null for the fingerprint": ({"fingerprint": None}, "fingerprint: "),
    "options in a list": ({"options": [1]}, "options: "),
    "options without a seed": ({"options": {"samples_per_shard": 1, "resize": None, "max_pixels": 9}}, "options.seed"),
    "markup for resize": (
        {"options": {"samples_per_shard": 1, "resize": "<script>", "max_pixels": 9, "seed": 0}},
        "options.resize: Input should be a valid integer",
    ),
    "another check": (
        {"options": {"samples_per_shard": 1, "resize": None, "max_pixels": 9, "seed": 0, "check": "none"}},
        "options.check: Input should be 'decode' or 'header'",
    ),
    "a field too much": ({"more": 1}, "more: "),
    "a version in text": ({"version": "1"}, "version"),
}
SHARD = {"name": "shard-000000.tar", "samples": 13, "bytes": 10**6, "sha256": ""}
for fault, fields in {
    "no name": {"name": ""},
    "a name with a null byte": {"name": "a\0b"},
    "a number for a name": {"name": 5},
    "a list for a name": {"name": ["a"]},
    "a shard without samples": {"samples": 0},
    "a shard of negative bytes": {"bytes": -1},
    "a shard of half a byte": {"bytes": 0.5},
}.items():
    MISDESCRIBED[fault] = ({"shards": [SHARD | fields]}, "shards")
MISDESCRIBED["a shard twice"] = ({"shards": [SHARD, SHARD]}, "shards: a name is there twice")
MISDESCRIBED["more samples than bytes"] = ({"shards": [SHARD | {"samples": 10**6 + 1}]}, "more samples than bytes")
HUGE = [SHARD | {"name": name, "bytes": 2**59 + 1} for name in "ab"]
MISDESCRIBED["more bytes than there are"] = ({"shards": HUGE}, "more bytes than any storage")
MISDESCRIBED["a shard in text"] = ({"shards": ["shard-000000.tar"]}, "shards.0: ")


@pytest.mark.parametrize("case", sorted(MISDESCRIBED))
def test_a_field_of_the_description_that_cannot_be_is_named(root: Path, case: str) -> None:
    fields, why = MISDESCRIBED[case]
    describe(root, **fields)
    with pytest.raises(ShardError) as caught:
        Dataset.load(root)
    assert str(caught.value).startswith(f"{root}/dataset.json: is not a maskfeat-shards description (")
    assert why in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ('{"format": 1, "format": 2}', "an object has a name twice"),
        ("[NaN]", "its format is not"),
        ('{"format": "maskfeat-shards", "version": NaN}', "version: it is not a whole number"),
        ("1" * 5000, ""),
        ("\xff", ""),
        ("null", "its format is not"),
        ("", ""),
    ],
)
def test_a_description_that_is_not_json_or_says_two_things(root: Path, text: str, why: str) -> None:
    (root / "dataset.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ShardError) as caught:
        Dataset.load(root)
    assert str(caught.value).startswith(f"{root}/dataset.json: is not a maskfeat-shards description (")
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_options_from_before_there_was_a_choice_and_names_that_are_not_utf8_are_read(
    root: Path, tmp_path: Path
) -> None:
    options = json.loads((root / "dataset.json").read_text())["options"]
    assert options.pop("check") == "decode"
    describe(root, options=options)
    loaded = Dataset.load(root).options
    assert loaded and loaded.check == "decode" and loaded.samples_per_shard == 5
    tar = os.fsdecode(bytes(tmp_path) + b"/\xff.tar")
    make_tar(Path(tar), {f"0.{name}": content for name, content in sample(0)})
    index_tars([tar], tmp_path / "index", workers=1)
    assert Dataset.load(tmp_path / "index").shards[0].name == tar
    assert verify(tmp_path / "index") == []


def test_json_says_one_thing() -> None:
    assert parse_json(b'{"a": [1, 2.5, "\\ud83d\\ude00", null], "b": {"a": {}}}') == {
        "a": [1, 2.5, "\N{GRINNING FACE}", None],
        "b": {"a": {}},
    }


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


@pytest.mark.parametrize(
    ("change", "why"),
    [(put("reason", 0, None), "column reason has nulls"), (retype("reason", pa.large_binary()), "column reason is of")],
)
def test_rejects_without_a_reason_are_refused(root: Path, change: Change, why: str) -> None:
    assert count_rejects(root) == {"empty": 1}
    rewrite(root, change, "rejects.parquet")
    with pytest.raises(ShardError, match=rf"rejects\.parquet: is not a maskfeat-shards table \({why}"):
        count_rejects(root)


@pytest.mark.parametrize("command", ["info", "verify", "preview"])
@pytest.mark.parametrize(
    "name", ["dataset.json", "manifest.parquet", "rejects.parquet", "duplicates.parquet", "tar", "idx"]
)
def test_a_pipe_a_device_or_a_folder_is_not_waited_for(
    root: Path,
    tmp_path: Path,
    name: str,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = root / (f"shard-000000.{name}" if name in ("tar", "idx") else name)
    arguments = [command, str(root), *(["--out", str(tmp_path / "page.html")] if command == "preview" else [])]
    for make in (os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")):
        path.unlink() if path.is_file() else path.rename(tmp_path / f"aside-{os.urandom(4).hex()}")
        make(path)
        monkeypatch.setattr(sys, "argv", ["maskfeat-shards", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capfd.readouterr()
        if (command, name) in (("info", "tar"), ("info", "idx"), ("preview", "idx")):  # which do not read it
            assert not end.value.code
        else:
            assert end.value.code in (1, 2) and "regular file" in said.err + said.out
            assert path.name in said.err + said.out and "Traceback" not in said.err


WRONG = {
    "crc32c": (put("crc32c", 7, 1), "its crc32c is 1 in the manifest, "),
    "height": (put("height", 7, 9), "its height is 9 in the manifest, 4"),
    "width": (put("width", 7, 57), "its width is 57 in the manifest, 56 in the tar"),
    "size": (lambda of: put("size", 7, of["size"][7].as_py() - 1)(of), "its size is "),
    "offset": (lambda of: put("offset", 7, of["offset"][7].as_py() + 1)(of), "no sample of that key at its offset"),
    "key": (put("key", 7, "000000099"), "(000000099, "),
    "the key of another": (lambda of: put("key", 7, of["key"][6].as_py())(of), "no sample of that key at its offset"),
    "label": (lambda of: put("label", 7, 1 - of["label"][7].as_py())(of), "its label is "),
    "no label": (put("label", 7, None), "its label is -1 in the manifest, "),
    "path": (put("path", 7, "elsewhere"), "its path is elsewhere in the manifest, "),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_verify_compares_every_row_with_its_tar(root: Path, case: str) -> None:
    """Where tars, .idx files and all checksums fit."""
    change, what = WRONG[case]
    rewrite(root, change)
    shard = Manifest.load(root).shard[7]
    (problem,) = (problem for problem in verify(root) if problem.file.startswith("shard-"))
    assert problem.file == f"shard-{shard:06d}.tar" and problem.what.startswith("sample 7 (") and what in problem.what


def test_verify_finds_a_row_that_is_there_twice(root: Path) -> None:
    def double(of: dict[str, Any]) -> dict[str, Any]:
        return {name: pa.concat_arrays([values[:7], values[6:7], values[8:]]) for name, values in of.items()}

    rewrite(root, double)
    problems = [problem for problem in verify(root) if problem.file.endswith(".tar")]
    assert [problem.what.partition(" (")[0] for problem in problems] == ["sample 7"]
    assert "or the manifest has it twice" in problems[0].what


def test_verify_finds_null_names_and_exchanged_classes(root: Path) -> None:
    rewrite(root, put("key", 3, None))
    assert {str(problem).partition(" (")[0] for problem in verify(root)} == {
        f"shard-00000{shard}.tar: {root}/manifest.parquet: is not a maskfeat-shards table" for shard in range(3)
    }
    with pytest.raises(ShardError, match="column key has nulls"):
        Manifest.load(root).names(0, 13)


def test_verify_finds_classes_that_have_changed_places(root: Path) -> None:
    describe(root, classes=["bee", "ant"])
    problems = verify(root)
    assert len(problems) == 13
    assert {problem.what.partition(": ")[2] for problem in problems} == {
        "its class is bee in the manifest, ant in the tar",
        "its class is ant in the manifest, bee in the tar",
    }


def test_verify_compares_sides_as_they_are_after_exif(tmp_path: Path) -> None:
    image = picture(0, 30, 50)
    exif = image.getexif()
    exif[0x0112] = 6
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "turned.jpg").write_bytes(encoded(image, "JPEG", exif=exif))
    build(tmp_path / "source", tmp_path / "out", workers=1)
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.height.tolist(), manifest.width.tolist()) == ([50], [30])
    assert verify(tmp_path / "out") == []
    rewrite(tmp_path / "out", lambda of: of.update(height=of["width"], width=of["height"]))
    (problem,) = verify(tmp_path / "out")
    assert "its height is 30 in the manifest, 50 in the tar; its width is 50 in the manifest, 30" in problem.what


def test_verify_compares_rows_of_tars_made_elsewhere(tmp_path: Path) -> None:
    members = {f"a/{number}.{name}": content for number in range(4) for name, content in sample(number)}
    make_tar(tmp_path / "0.tar", members)
    index_tars([str(tmp_path / "0.tar")], tmp_path / "out", workers=1)
    assert verify(tmp_path / "out") == []
    for column, value in (("path", "a/3.png"), ("key", "b/2"), ("crc32c", 7), ("height", 3)):
        shutil.copytree(tmp_path / "out", tmp_path / column)
        rewrite(tmp_path / column, put(column, 2, value))
        (problem,) = verify(tmp_path / column)
        assert problem.file == f"{tmp_path}/0.tar" and problem.what.startswith("sample 2 (")


def sample(number: int) -> list[tuple[str, bytes]]:
    return [("cls", b"%d" % number), ("jpg", encoded(picture(number), "JPEG")), ("json", b'{"caption": "a"}')]


def test_names_are_not_those_of_another_manifest(root: Path) -> None:
    """Which came to lie there after this one was loaded."""
    manifest = Manifest.load(root)
    assert len(manifest.names(0, 13)) == 13
    rewrite(root, put("crc32c", 0, 1))
    with pytest.raises(ShardError, match=r"manifest\.parquet: is not a .* \(it has been replaced\)"):
        manifest.names(3, 5)
    rewrite(root, lambda of: {name: values[:5] for name, values in of.items()})
    with pytest.raises(ShardError, match=r"manifest\.parquet: is not a .* \(it has been replaced\)"):
        manifest.names(3, 5)


def test_an_indexed_tar_that_was_moved_is_named_by_the_path_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make_tar(tmp_path / "a.tar", {f"0.{name}": content for name, content in sample(0)})
    index_tars([str(tmp_path / "a.tar")], tmp_path / "out", workers=1)
    (tmp_path / "a.tar").rename(tmp_path / "b.tar")
    monkeypatch.setattr(sys, "argv", ["maskfeat-shards", "verify", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capfd.readouterr()
    assert end.value.code == 1
    assert said.out == f"{tmp_path}/a.tar: cannot be read: No such file or directory\n"
    assert "index them again" in said.err and "build" not in said.err
