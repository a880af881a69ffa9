"""Untrusted names on a terminal: their form; no name ends a command."""

import io
import logging
import os
import pty
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from making_images import encoded, picture

from shards import terminal
from shards.build import build
from shards.output import progress

HOSTILE = {
    "a\nerror: forged": r"a\nerror: forged",
    "\x1b]0;title\x07\x1b[31mred\x1b[0m": r"\x1b]0;title\x07\x1b[31mred\x1b[0m",
    "a\r\x85\u2028\u2029b\x9b2J": r"a\r\x85\u2028\u2029b\x9b2J",
    "\u202egpj.exe\u2066": r"\u202egpj.exe\u2066",
    "[/x] [red]b[/red] [link=a] :smile: {task} %s": "[/x] [red]b[/red] [link=a] :smile: {task} %s",
    "\udcff\udcfe": r"\udcff\udcfe",
    "Bär 猫": "Bär 猫",
    "https://bob:SEKRET@host/a?sig=SEKRET": "https://***@host/a?sig=***",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_shown_as_it_is_on_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say(name)
    terminal.note(name)
    assert capsys.readouterr() == (f"{HOSTILE[name]}\n", f"{HOSTILE[name]}\n")


def test_a_name_without_end_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say("a" * 1_000_000)
    assert capsys.readouterr().out == f"{'a' * 20_000}... and 980,000 more characters\n"


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in ((sys, "excepthook"), (threading, "excepthook"), (warnings, "formatwarning")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(logging, "_logRecordFactory", logging.LogRecord)  # a command run before may have set another
    terminal.prepare()
    assert logging.getLogRecordFactory() is not logging.LogRecord


@pytest.mark.usefixtures("prepared")
def test_what_libraries_say_is_shown_so_too(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(stream := io.StringIO())
    logger = logging.getLogger("somebody else's")
    logger.addHandler(handler)
    logger.warning("got %s\nof %s", "\x1b[2J", "https://h/?sig=SEKRET")
    assert stream.getvalue() == "got \\x1b[2J\nof https://h/?sig=***\n"
    assert warnings.formatwarning("a\x1bb https://h/?sig=SEKRET", UserWarning, "file.py", 3) == (
        "file.py:3: UserWarning: a\\x1bb https://h/?sig=***\n"
    )

    def fail() -> None:
        raise ValueError("no answer of https://bob:SEKRET@host/?sig=SEKRET \x1b[2J")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):\n")
    assert said.endswith("ValueError: no answer of https://***@host/?sig=*** \\x1b[2J\n")


def in_a_terminal(code: str, *arguments: str) -> str:
    """Return the output of a Python program on a terminal, which is its stdout and stderr."""
    main, end = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=end, stderr=end, stdin=end)
    os.close(end)
    said = b""
    try:
        while more := os.read(main, 4096):
            said += more
    except OSError:  # how a terminal ends on Linux
        pass
    os.close(main)
    assert process.wait() == 0, said.decode()
    return said.decode()


def test_progress_takes_no_name_for_markup() -> None:
    code = (
        "import sys; from shards.output import progress\nwith progress(sys.argv[1], 'images') as report: report(1, 2)"
    )
    said = in_a_terminal(code, "[/x] [red]b :smile: \x1b[2J")
    assert r"[/x] [red]b :smile: \x1b[2J" in said and "1/2" in said


def test_progress_elsewhere_is_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.output._SECONDS_BETWEEN_LINES", -1.0)
    with progress("a\x1bb", "images") as report:
        report(1, 2)
    assert capsys.readouterr().err == "a\\x1bb: 1 of 2 images\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_command_prints_names_that_the_terminal_has_not(tmp_path: Path, encoding: str) -> None:
    """Class folders of all kinds, a line each, whatever the encoding."""
    names = ["Bär", "猫", "a\nerror: forged", "b\x1b[2J", "[red]"]
    for number, name in enumerate(names):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "a.png").write_bytes(encoded(picture(number), "png"))
    build(tmp_path / "images", tmp_path / "Bär", samples_per_shard=10, workers=1)
    environment = os.environ | {"PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    command = [sys.executable, "-m", "shards.cli", "info", "Bär"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    said = done.stdout.decode(encoding)
    shown = {"ascii": (r"B\xe4r", r"\u732b"), "latin-1": ("Bär", r"\u732b"), "utf-8": ("Bär", "猫")}[encoding]
    listed = {line[2:].rpartition(" ")[0].strip() for line in said.splitlines() if line.startswith("  ")}
    assert listed == {*shown, r"a\nerror: forged", r"b\x1b[2J", "[red]"}
    assert "\x1b" not in said


def test_usage_errors_quote_arguments_on_one_line() -> None:
    command = [sys.executable, "-m", "shards.cli", "preview", "a", "--out", "b", "\x1b[2J\nerror: forged"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("Error: ") and "error: forged" in done.stderr.splitlines()[-1]
    assert "\x1b" not in done.stderr


def test_arguments_that_are_not_understood_are_quoted_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = terminal.Parser("What it does.")
    parser.prog = "program"
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["-H", "Authorization: Bearer SEKRET", "a\x1b[2J\nerror: forged"])
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        r"program: error: unrecognized arguments: -H Authorization: Bearer *** a\x1b[2J\nerror: forged"
    ]


def test_of_several_processes_one_prints_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for local_rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        with pytest.raises(SystemExit) as exit_:
            terminal.Parser(None, prog="maskfeat pretrain").parse_args(["--nonsense"])
        assert exit_.value.code == 2
    assert capsys.readouterr().err == "maskfeat pretrain: error: unrecognized arguments: --nonsense\n"
