"""Tars that are taken, or left out, as a whole, and what is said of them."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from indexing import JPEGS, samples
from making_images import contents, make_tar

from shards import cli
from shards.build import build
from shards.files import ShardError
from shards.index import index_tars
from shards.manifest import Manifest
from shards.sources.source import list_source


@pytest.mark.parametrize(
    ("suffix", "packed", "says"),
    [
        (".tar.gz", gzip.compress, "(gzip), so its members cannot be read by their position; `gunzip` it first"),
        (".tgz", gzip.compress, "`gunzip` it"),
        (".tar", gzip.compress, "`gunzip` it"),
        (".tar.bz2", bz2.compress, "`bunzip2` it"),
        (".tar.xz", lzma.compress, "`unxz` it"),
        (".tar.zst", lambda data: b"\x28\xb5\x2f\xfd" + data, "`unzstd` it"),
        (".tar", lambda data: b"PK\3\4" + data, "`unzip` it"),
    ],
)
def test_a_compressed_tar_says_so(suffix: str, packed: Callable[[bytes], bytes], says: str, tmp_path: Path) -> None:
    plain = make_tar(tmp_path / "plain.tar", samples())
    tar = tmp_path / f"packed{suffix}"
    tar.write_bytes(packed(plain.read_bytes()))
    with pytest.raises(ShardError) as index_error:
        index_tars([str(tar)], tmp_path / "out", workers=1)
    with pytest.raises(ShardError) as source_error:
        list_source(tar)
    outer = make_tar(tmp_path / "outer.tar", {f"ant{suffix}": tar.read_bytes()})
    with pytest.raises(ShardError) as inner_error:
        list_source(outer)
    assert str(index_error.value) == str(source_error.value)
    assert str(index_error.value).startswith(f"{tar}: is compressed (") and says in str(index_error.value)
    assert str(inner_error.value).startswith(f"{outer}/ant{suffix}: is compressed (") and says in str(inner_error.value)


def test_folders_of_a_tar_are_no_classes_and_both_commands_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = make_tar(tmp_path / "tree.tar", {"cat/0.jpg": JPEGS[0], "dog/0.jpg": JPEGS[1]})
    with pytest.raises(ShardError, match="if its folders are classes, unpack it and build the folder"):
        build(tar, tmp_path / "built", workers=1)
    monkeypatch.setattr("sys.argv", ["maskfeat-shards", "index", str(tar), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    said = "its samples are in folders, which `index` does not take as classes; if they are classes, "
    assert f"{tmp_path}/out: {said}unpack the tars and use `maskfeat-shards build`\n" in capsys.readouterr().err


def test_a_tar_that_is_left_out_is_named_with_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tar(tmp_path / "good.tar", {"0.jpg": JPEGS[0], "1.jpg": b"x"})
    (tmp_path / "bad\n.tar").write_bytes(b"text")
    monkeypatch.setattr("sys.argv", ["maskfeat-shards", "index", f"{tmp_path}/*.tar", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    why = "not a readable tar (it begins with b'text'); copy or build it again"
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"left out: {tmp_path}/bad\\n.tar: {why}"
    assert (
        f"has 2 rejects where --max-rejects allows 0 (such as {tmp_path}/bad\\n.tar: unreadable tar, {why})" in said[1]
    )
    assert len(said) == 2


def test_the_same_tars_give_the_same_bytes_with_any_workers(tmp_path: Path) -> None:
    for number in range(3):
        make_tar(
            tmp_path / f"{number}.tar", {f"{number}.jpg": JPEGS[number], f"{number}.cls": b"abc"[number : number + 1]}
        )
    for workers in (1, 2):
        index_tars([f"{tmp_path}/*.tar"], tmp_path / f"out{workers}", workers=workers)
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")
    assert Manifest.load(tmp_path / "out1").classes == ["a", "b", "c"]
