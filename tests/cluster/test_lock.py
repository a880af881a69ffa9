"""A run's folder is used by one run at a time."""

import errno
import fcntl
import multiprocessing
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from launching import SMALL, free_port, start
from ranks import Ranks

from pipeline import files
from pipeline.checkpoints.checkpoint import newest
from pipeline.cluster.lock import _take, hold
from pipeline.cluster.world import World, join
from pipeline.settings import ConfigError


@pytest.fixture
def world() -> World:
    return join()


def holder(folder: Path, seconds: float) -> multiprocessing.process.BaseProcess:
    """Start a process that holds the folder for some seconds, once this returns."""
    fork = multiprocessing.get_context("fork")
    held = fork.Event()
    process = fork.Process(target=_hold, args=(folder, seconds, held), daemon=True)
    process.start()
    assert held.wait(60)
    return process


def _hold(folder: Path, seconds: float, held: Any) -> None:
    assert not _take(folder, 0)
    subprocess.Popen(["sleep", "20"])  # it outlives this process, and has no part in the lock
    held.set()
    time.sleep(seconds)


def test_a_folder_in_use_is_refused(tmp_path: Path, world: World) -> None:
    process = holder(tmp_path / "run", 60)
    expected = f"run.dir={tmp_path}/run is in use by pid {process.pid} on {socket.gethostname()}: wait for it or end it"
    with pytest.raises(ConfigError) as caught:
        hold(tmp_path / "run", world, 0)
    assert str(caught.value) == expected
    process.kill()
    process.join()
    hold(tmp_path / "run", world, 0)


def test_a_holder_that_says_nonsense_is_one_error(tmp_path: Path, world: World) -> None:
    (tmp_path / ".lock").write_bytes(b"\xff" + b"x" * 10**6)
    with (tmp_path / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=r"is in use by \ufffdx{299}: wait for it or end it"):
            hold(tmp_path, world, 0)


def test_a_run_that_is_about_to_end_is_waited_for(
    tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    process = holder(tmp_path, 5)
    hold(tmp_path, world, 30)
    process.join(15)
    assert process.exitcode == 0
    (said,) = capsys.readouterr().out.splitlines()
    assert said == f"note: run.dir={tmp_path} is in use by pid {process.pid} on {socket.gethostname()}: " + (
        "waiting 30 s for its end"
    )
    assert (tmp_path / ".lock").read_text() == f"pid {os.getpid()} on {socket.gethostname()}\n"


def test_a_file_system_without_locks(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert files.fcntl is fcntl
    hold(tmp_path, world, 0)
    assert "cannot be locked (Function not implemented)" in capsys.readouterr().out


def test_a_second_run_leaves_the_first_alone(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start(shards, run, "run.save_every=2", "optim.epochs=2000")
    first.until(lambda: any(run.glob("checkpoints/step-*")))
    settings = [*SMALL, f"data.shards={shards}", f"run.dir={run}", "run.deadline=20", "run.max_steps=1"]
    second = Ranks(2, ["demo", *settings], tmp_path / "second-said", free_port())
    assert second.wait(120) == [1, 1]
    assert second.said().count("error: ") == 1 and f"is in use by pid {first.pids[0]} on" in second.said()
    first.signal(0, signal.SIGTERM)
    assert first.wait(60) == [75, 75], first.said()
    found = newest(run / "checkpoints", report=print)
    assert found and f"stopped at step {found.facts.step}," in first.said()
