"""A disk that is full while a run logs: training goes on, the operator is told, and no line is lost or torn."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launching import (
    CHECKOUT,
    assert_same_weights,
    last_checkpoint,
    launch,
    losses,
    metrics,
    small_recipe,
    start,
    trace,
)
from ranks import Ranks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.files import AppendedFile, Writing, keep_lines, replace
from pipeline.report.monitor import open_monitor
from pipeline.report.progress import Schedule

NUMBERS = {"grad_norm": 1.0, "lr": 1e-4, "images_per_second": 10.0, "data_wait": 0.5}
NUMBERS |= {f"data/{number}": 0.0 for number in range(20)}  # some lines fill the page that a file had left


def fill(disk: Path) -> Path:
    """Leave no room; the file to remove."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(2**20))
    return filler


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def curve(run: Path) -> dict[int, float]:
    """The loss by step, as TensorBoard shows it."""
    return {point.step: point.value for point in EventAccumulator(str(run / "tensorboard")).Reload().Scalars("loss")}


def test_a_file_grows_by_all_or_nothing(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writing, path = Writing(), small_disk / "file"
    growing = AppendedFile(path, writing)
    growing.append(b"first\n")  # the rest of its page has room
    filler = fill(small_disk)
    lines = [bytes([letter]) * 3000 + b"\n" for letter in b"abcde"]
    for line in lines:
        growing.append(line)
    assert path.read_bytes() == b"first\n" + lines[0]
    assert writing.failures == 4

    filler.unlink()
    growing.append(b"last\n")
    assert path.read_bytes() == b"first\n" + b"".join(lines) + b"last\n"
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"warning: {path} cannot be written (No space left on device), training continues: free space there",
        f"note: {path} can be written again",
    ]


def test_lines_are_cut_without_room_for_others(small_disk: Path) -> None:
    path = small_disk / "lines.jsonl"
    whole = [json.dumps({"step": step}) + "\n" for step in (1, 2, 2, 4, 5)]
    for content, step, kept in (("".join(whole), 3, 3), ("".join(whole[:2]) + '{"step": 2', 9, 2), ("", 3, 0)):
        path.write_text(content)
        filler = fill(small_disk)
        keep_lines(path, step)
        assert path.read_text() == "".join(whole[:kept])
        filler.unlink()
    keep_lines(small_disk / "missing", 3)


def test_a_content_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, (tmp_path / "file").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    replace(tmp_path / "file", b"content")
    assert synced == [("file", False), (tmp_path.name, True)]  # the file before its name, and that then
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_bytes() == b"content"


def test_what_is_watched_outlasts_a_full_disk(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = small_recipe("shards", small_disk).model_dump(mode="json")
    monitor = open_monitor(small_disk, "a test", recipe, Schedule(0, 40, 16, 4))
    picture = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    for step in range(1, 41):
        if step == 11:
            filler = fill(small_disk)
        if step == 31:
            filler.unlink()
        monitor.log(step, {"loss": step / 8} | NUMBERS)
        monitor.quarantine([{"step": step - 1, "id": step, "reason": "a test" * 50}])
        if step % 10 == 5:
            monitor.picture(step, "reconstruction", picture)
    monitor.close()

    expected = {step: step / 8 for step in range(1, 41)}
    assert losses(small_disk) == expected == curve(small_disk)
    assert [line["id"] for line in entries(small_disk / "quarantine.jsonl")] == list(expected)
    assert [path.stem for path in sorted((small_disk / "pictures").iterdir())] == ["step-00000005", "step-00000035"]
    failed = [line["failed_writes"] for line in metrics(small_disk)]
    assert failed[9] == 0 and failed[29] > 30 and len(set(failed[30:])) == 1
    said = capsys.readouterr().out
    (board,) = (small_disk / "tensorboard").iterdir()
    for path in (small_disk / "metrics.jsonl", small_disk / "quarantine.jsonl", small_disk / "pictures", board):
        assert said.count(f"warning: {path} cannot be written") == said.count(f"note: {path} can be written again") == 1


def test_the_recipe_of_the_life_before_stays(small_disk: Path) -> None:
    recipe = small_recipe("shards", small_disk).model_dump(mode="json")
    open_monitor(small_disk, "a test", recipe, Schedule(0, 40, 16, 4)).close()
    before = (small_disk / "config.yaml").read_text()
    fill(small_disk)
    open_monitor(small_disk, "a test", recipe | {"run": {"note": "x" * 10_000}}, Schedule(0, 40, 16, 4)).close()
    assert (small_disk / "config.yaml").read_text() == before


def test_a_console_that_goes_to_a_full_disk(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe("shards", small_disk).model_dump(mode="json")
    monitor = open_monitor(small_disk, "a test", recipe, Schedule(0, 40, 16, 4))
    with (small_disk / "said").open("w") as console:
        monkeypatch.setattr(sys, "stdout", console)
        filler = fill(small_disk)
        for step in range(1, 100):
            monitor.log(step, {"loss": 0.0} | NUMBERS)
        filler.unlink()
        monitor.log(100, {"loss": 0.0} | NUMBERS)
        monitor.close()
    assert (small_disk / "said").read_text().splitlines()[-2].startswith("step 100/40  loss 0.0000")
    assert list(losses(small_disk)) == list(range(1, 101))


def test_a_console_that_nobody_reads_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe("shards", tmp_path).model_dump(mode="json")
    monitor = open_monitor(tmp_path, "a test", recipe, Schedule(0, 2, 16, 4))
    reads, writes = os.pipe()
    os.close(reads)
    console = os.fdopen(writes, "w")
    monkeypatch.setattr(sys, "stdout", console)
    for step in (1, 2):
        monitor.log(step, {"loss": 0.0} | NUMBERS)
    monitor.close()
    with pytest.raises(BrokenPipeError):
        console.close()
    assert [line["failed_writes"] for line in metrics(tmp_path)] == [0, 1]


def test_the_supervisor_starts_again_what_fails_on_a_full_disk(small_disk: Path) -> None:
    fill(small_disk)
    command = [sys.executable, CHECKOUT / "scripts" / "launch" / "supervise.py", "--tries", "3", "--pause", "0.01"]
    command += ["--", "bash", "-c", "exit 3", "launcher", f"run.dir={small_disk}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.count("failed with status 3") == 3
    assert "gave up" in done.stderr and "lives-" in done.stderr and "No space left on device" in done.stderr


def test_training_goes_on_while_its_disk_is_full(shards: Path, small_disk: Path, tmp_path: Path) -> None:
    """The run's folder is that disk; what its two ranks say is not there."""
    options = [f"data.validation={shards}", "data.validation_samples=16", "run.eval_every=5", "run.trace_samples=true"]
    options.append("optim.epochs=2000")
    ranks = start(shards, small_disk, *options)
    ranks.until(lambda: last_step(ranks) >= 3)
    filler = fill(small_disk)
    ranks.until(lambda: all(f"{name} cannot be written" in ranks.said() for name in ("metrics.jsonl", "pictures")))
    full = last_step(ranks)
    ranks.until(lambda: last_step(ranks) > full + 5)
    filler.unlink()
    ranks.until(lambda: "metrics.jsonl can be written again" in ranks.said())
    ranks.signal(1, signal.SIGTERM)
    assert ranks.wait(60) == [75, 75], ranks.said()

    whole = tmp_path / "whole"
    launch(shards, whole, *options, f"run.max_steps={last_checkpoint(small_disk).facts.step}")
    assert_same_weights(small_disk, whole)
    for rank in (0, 1):
        assert trace(small_disk, rank) == trace(whole, rank)
    assert losses(small_disk) == losses(whole)
    assert curve(small_disk) == curve(whole)
    assert metrics(small_disk)[-1]["failed_writes"] > 0


def last_step(ranks: Ranks) -> int:
    return max(map(int, re.findall(r"^step (\d+)/", ranks.said(), re.MULTILINE)), default=0)
