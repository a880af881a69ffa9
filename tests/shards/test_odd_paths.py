"""Files that are not what their names say: none of them hangs a reader, and none is written through."""

import dataclasses
import errno
import os
import re
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from making_images import contents, make_tar, make_tree

from pipeline.data.reader import Reader
from pipeline.files import replace
from shards import cli
from shards.build import build
from shards.files import ShardError, sha256_of
from shards.manifest import Manifest
from shards.preview import write_preview
from shards.storage import as_local, opened, read, replacing, size_of
from shards.verify import verify

ODD: dict[str, Callable[[Path], None]] = {
    "a FIFO": lambda path: os.mkfifo(path),
    "a device without end": lambda path: path.symlink_to("/dev/zero"),
    "a terminal": lambda path: path.symlink_to("/dev/tty" if Path("/dev/tty").exists() else "/dev/null"),
    "a folder": lambda path: path.mkdir(),
}
READERS: dict[str, Callable[[str], object]] = {
    "read": read,
    "a part": lambda file: read(file, 0, 10),
    "opened": opened,
    "as_local": lambda file: as_local(file).__enter__(),
    "size_of": size_of,
    "sha256_of": lambda file: sha256_of(Path(file)),
}


@pytest.fixture
def built(tmp_path: Path) -> Path:
    build(make_tree(tmp_path / "source", 6), tmp_path / "out", samples_per_shard=3, workers=1)
    return tmp_path / "out"


def at_once(call: Callable[[], object], error: type[Exception]) -> str:
    begun = time.monotonic()
    with pytest.raises(error) as caught:
        call()
    assert time.monotonic() - begun < 5.0
    return f"{caught.value.strerror}" if isinstance(caught.value, OSError) else str(caught.value)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("reader", READERS)
def test_only_regular_files_are_read(odd: str, reader: str, tmp_path: Path) -> None:
    ODD[odd](tmp_path / "x")
    what = at_once(lambda: READERS[reader](str(tmp_path / "x")), OSError)
    assert what in ("is not a regular file", os.strerror(errno.ENXIO))  # the latter of a terminal that is gone
    if reader not in ("sha256_of", "as_local") and odd != "a folder":
        assert at_once(lambda: READERS[reader](f"file://{tmp_path}/x"), OSError) == "is not a regular file"


def test_a_file_that_is_longer_than_it_says_is_not_read_on() -> None:
    """As those of /proc are, of which some never end."""
    assert Path("/proc/self/status").stat().st_size == 0
    assert read("/proc/self/status") == b""
    assert sha256_of(Path("/proc/self/status")) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_what_is_asked_for_beyond_the_end_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"0123456789")
    for offset, size, came in ((5, 2**29, 5), (2**62, 1, 0), (10, 5, 0)):
        with pytest.raises(OSError, match=f"{came} bytes were received instead of {size}"):
            read(str(tmp_path / "x"), offset, size)
    for offset, size in ((-1, 5), (0, -5), (0, 2**62)):
        assert at_once(lambda offset=offset, size=size: read(str(tmp_path / "x"), offset, size), OSError).startswith(
            "cannot be read at once"
        )


@pytest.mark.parametrize("odd", ["a FIFO", "a device without end", "a folder"])
@pytest.mark.parametrize("name", ["dataset.json", "manifest.parquet", "rejects.parquet", "shard-000000.tar"])
def test_an_odd_file_in_a_data_set_is_one_error(odd: str, name: str, built: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(built)
    (built / name).unlink()
    ODD[odd](built / name)
    if name in ("dataset.json", "manifest.parquet"):
        for call in (lambda: Manifest.load(built), lambda: verify(built), lambda: write_preview(built, tmp_path / "p")):
            assert "is not a regular file" in at_once(call, ShardError)
        return
    assert "is not a regular file" in at_once(lambda: write_preview(built, tmp_path / "p"), ShardError)
    (problem,) = verify(built)
    assert "is not a regular file" in problem.what
    samples = Reader(manifest).submit(np.arange(len(manifest))).result()
    bad = [isinstance(sample, str) for sample in samples]
    assert bad == ((manifest.shard == 0) & (name == "shard-000000.tar")).tolist()
    assert all("is not a regular file" in sample for sample in samples if isinstance(sample, str))


def test_a_sample_of_any_size_is_a_bad_one(built: Path) -> None:
    manifest = dataclasses.replace(Manifest.load(built), size=np.array([2**40, 2**62, 0, 5, 2**31, 7]))
    samples = Reader(manifest).submit(np.arange(6)).result()
    ends = [isinstance(sample, str) and "ends inside the sample" in sample for sample in samples]
    assert ends == [True, True, False, False, True, False]


def test_a_shard_of_any_size_takes_no_memory(built: Path) -> None:
    manifest = dataclasses.replace(Manifest.load(built), size=np.full(6, 2**41))
    with (built / "shard-000000.tar").open("r+b") as file:
        file.truncate(2**42)
    (sample,) = Reader(manifest).submit(np.arange(1)).result()
    assert isinstance(sample, str) and "cannot be read at once: 2,199,023,255,552 bytes" in sample


def test_nothing_is_written_through_a_link_that_waits(built: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("page.html.tmp", ".page.html.partial", "page.html", ".page.html.tmp", "page.html.partial"):
        (tmp_path / name).symlink_to(victim)
    write_preview(built, tmp_path / "page.html")
    assert victim.read_text() == "precious" and not (tmp_path / "page.html").is_symlink()
    replace(tmp_path / "page.html.tmp", b"new")
    assert victim.read_text() == "precious" and (tmp_path / "page.html.tmp").read_bytes() == b"new"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_what_is_published_has_ordinary_permissions(mask: int, tmp_path: Path) -> None:
    former = os.umask(mask)
    try:
        with replacing(tmp_path / "file", tmp_path) as scratch:
            folder = scratch.parent
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and folder.parent == tmp_path
            scratch.write_text("text")
    finally:
        os.umask(former)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_build_empties_no_file_that_a_link_names(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "out" / ".build").mkdir(parents=True)
    for name in ("lock", "build.json", "shard-000000.tar.tmp", "dataset.json.tmp"):
        (tmp_path / "out" / ".build" / name).symlink_to(victim)
    (tmp_path / "out" / ".build" / "build.json").unlink()
    build(make_tree(tmp_path / "source", 3), tmp_path / "out", workers=1)
    assert victim.read_text() == "precious" and len(Manifest.load(tmp_path / "out")) == 3


def test_scratch_files_have_names_of_their_own_and_leave_nothing(tmp_path: Path) -> None:
    names = set()
    for number in range(20):
        with replacing(tmp_path / "file", tmp_path) as scratch:
            names.add(scratch)
            scratch.write_text(str(number))
    assert len(names) == 20 and (tmp_path / "file").read_text() == "19"
    with pytest.raises(KeyError), replacing(tmp_path / "file", tmp_path) as scratch:
        scratch.write_text("torn")
        raise KeyError
    with replacing(tmp_path / "none", tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "19"


def test_a_build_that_goes_on_cleans_up_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_tree(tmp_path / "source", 6)
    build(source, tmp_path / "undisturbed", samples_per_shard=2, workers=1)
    child = os.fork()
    if child == 0:
        calls = iter(range(3))
        upto = os.fsync
        monkeypatch.setattr(os, "fsync", lambda descriptor: upto(descriptor) if next(calls) < 2 else os._exit(9))
        build(source, tmp_path / "out", samples_per_shard=2, workers=1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(list((tmp_path / "out" / ".build").glob(".writing-*"))) == 1
    seen = []
    monkeypatch.setattr(
        "shards.making.jobs.write_shard",
        lambda *arguments: seen.append(list((tmp_path / "out" / ".build").glob(".writing-*"))) or 1 / 0,
    )
    with pytest.raises(ZeroDivisionError):
        build(source, tmp_path / "out", samples_per_shard=2, workers=1)
    assert seen == [[]]
    monkeypatch.undo()
    build(source, tmp_path / "out", samples_per_shard=2, workers=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    "command",
    [
        "build {loop} {out}",
        "build {source} {loop}",
        "index {tar} --out {loop}",
        "verify {loop}",
        "preview {loop} --out x",
    ],
)
def test_a_link_in_a_circle_is_one_line(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    source = make_tree(tmp_path / "source", 2)
    tar = make_tar(tmp_path / "a.tar", {"0.jpg": (source / "ant" / "000.JPG").read_bytes()})
    words = command.format(loop=tmp_path / "loop", out=tmp_path / "out", source=source, tar=tar).split()
    monkeypatch.setattr(sys, "argv", ["maskfeat-shards", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    shown = capsys.readouterr()
    assert (end.value.code, shown.out) == (2, "")
    assert re.fullmatch(rf"error: {tmp_path}/loop\S*: .*Too many levels of symbolic links; .*\n", shown.err)


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
