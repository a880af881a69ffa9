"""`verify` compares every row of a manifest with its tar, where all checksums fit."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from making_images import encoded, make_tar, picture
from resealing import describe, put, rewrite

from shards import cli
from shards.build import build
from shards.files import ShardError
from shards.index import index_tars
from shards.manifest import Manifest
from shards.verify import verify

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
    """The tars, the .idx files and all checksums are right, but a row is not."""
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


def sample(number: int) -> list[tuple[str, bytes]]:
    return [("cls", b"%d" % number), ("jpg", encoded(picture(number), "JPEG")), ("json", b'{"caption": "a"}')]
