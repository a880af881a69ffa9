"""The output of a run on a terminal: names unchanged, on one line, and never markup."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from launching import small_recipe
from rich.console import Console

from pipeline.report.monitor import open_monitor
from pipeline.report.progress import Schedule

NAME = "d[/x] [red]b[/red] :smile: {task}.tar"


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return the output to a terminal."""
    file = io.StringIO()
    console = Console(force_terminal=True, file=file, width=60)
    monkeypatch.setattr("pipeline.report.monitor.Console", lambda **_: console)
    return file


def lines(screen: io.StringIO) -> list[str]:
    """The lines, without the escapes that are the progress bar's."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n").split("\n")


def bad(**names: str) -> list[dict[str, Any]]:
    return [{"step": 0, "id": 3, "reason": f"{NAME}\x1b]0;x\x07\nerror: forged"} | names]


def test_a_bad_sample_is_told_as_it_is_named(screen: io.StringIO, tmp_path: Path) -> None:
    monitor = open_monitor(tmp_path, NAME, small_recipe("x", tmp_path).plain(), Schedule(0, 10, 16, 4))
    monitor.quarantine(bad(key="a", path=NAME, shard="https://bob:SEKRET@host/a.tar"))
    monitor.say("a long line " * 20 + "https://bob:SEKRET@host/?sig=SEKRET")
    monitor.advance(1)
    monitor.close()
    told = (
        f"skipped 1 bad samples, see {tmp_path}/quarantine.jsonl; the first: sample 3, {NAME}"
        r"\x1b]0;x\x07\nerror: forged"
    )
    said = lines(screen)
    assert told in said  # whole, though wider than the terminal
    assert "a long line " * 20 + "https://***@host/?sig=***" in said
    assert '"shard": "https://***@host/a.tar"' in (tmp_path / "quarantine.jsonl").read_text()
    assert any(line.startswith(NAME) for line in said)  # before the bar
    assert not [line for line in said if line.startswith("error")]


@pytest.mark.parametrize(
    ("rates", "masks", "told"),
    [
        ({"images_per_second": 1234.5}, 1, "1,234 img/s"),
        ({"images_per_second": 1234.5}, 2, "1,234 views/s"),
        ({"images_per_second": 12.25, "frames_per_second": 196.0}, 1, "12.2 clips/s (196 frames/s)"),
        ({"images_per_second": 12.25, "frames_per_second": 196.0}, 2, "12.2 views/s (196 frames/s)"),
    ],
)
def test_speed_is_that_of_images_or_of_clips_and_their_frames_or_of_their_views(
    rates: dict[str, float], masks: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small_recipe("x", tmp_path, f"mask.repeats={masks}").plain()
    monitor = open_monitor(tmp_path, "a test", recipe, Schedule(0, 10, 16, 4))
    monitor.log(3, {"loss": 0.5, "lr": 1e-3, "grad_norm": 1.0, "data_wait": 0.25} | rates)
    monitor.close()
    assert f"grad 1.000  {told}  data 25%" in capsys.readouterr().out


def test_elsewhere_it_is_the_same_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor = open_monitor(tmp_path, "a test", small_recipe("x", tmp_path).plain(), Schedule(0, 10, 16, 4))
    monitor.quarantine(bad())
    monitor.close()
    assert capsys.readouterr().out == (
        f"skipped 1 bad samples, see {tmp_path}/quarantine.jsonl; the first: sample 3, {NAME}"
        "\\x1b]0;x\\x07\\nerror: forged\n"
    )
