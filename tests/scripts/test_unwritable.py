"""Commands whose output cannot be written end in one line that names it, and leave no traceback."""

import io
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from disks import disk_of
from PIL import Image
from resuming import OLD

SET = OLD / "set"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk that takes folders, but no byte."""
    with disk_of(4096, tmp_path_factory.mktemp("disks") / "full") as disk:
        (disk / "all").write_bytes(bytes(4096))
        yield disk


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def commands(out: Path, picture: Path) -> dict[str, list[Path | str]]:
    words = ["--words", "2", "data.image_size=32", "optim.batch_size=8", "data.lanes=4", "engine.precision=fp32"]
    return {
        **{kind: ["export", OLD / "pretrain", out, "--format", kind] for kind in ("timm", "torch", "maskfeat")},
        "predict": ["predict", picture, "--weights", OLD / "pretrain", "--out", out.with_suffix(".png")],
        "probe": ["probe", OLD / "pretrain", f"data.shards={SET}", f"data.validation={SET}", "--out", out],
        "words": ["words", SET, out, *words],
    }


def run(monkeypatch: pytest.MonkeyPatch, command: list[Path | str]) -> int:
    """Run a command in this process, and return its exit status."""
    name, *arguments = map(str, command)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    return int(import_module(f"pipeline.commands.{name}").main())


COMMANDS = list(commands(Path("out"), Path("picture")))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk(
    command: str, full: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, commands(full / command, picture)[command]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {full / command}") and error.count("\n") == 1
    assert error.endswith(" cannot be written (No space left on device): free space there\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_where_a_folder_has_to_be(
    command: str,
    tmp_path: Path,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    assert run(monkeypatch, commands(tmp_path / "file" / "x", picture)[command]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'file'}") and error.count("\n") == 1
    assert " cannot be written (Not a directory): choose " in error


class Unread(io.StringIO):
    """The output of a program whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize(("command", "told"), [("timm", False), ("predict", False), ("words", True)])
def test_a_reader_that_has_left_is_not_reported(
    command: str,
    told: bool,
    tmp_path: Path,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As a status where the command itself ends the process, and otherwise as the error that `maskfeat` awaits."""
    monkeypatch.setattr(sys, "stdout", Unread())
    try:
        assert run(monkeypatch, commands(tmp_path / "out", picture)[command]) == 1 and told
    except BrokenPipeError:
        assert not told
    assert capsys.readouterr().err == ""
