"""Deaths that a rank cannot report itself: each is one line, with stacks where there is time for them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import metrics, start

from pipeline.cluster.witness import explain, killed_for_memory

RANK = '''
import ctypes, os, signal, sys, threading
from pathlib import Path
from pipeline.cluster import phases
from pipeline.cluster.witness import witnessed

libc, run = ctypes.CDLL(None), Path(sys.argv[1])

def abort_in_a_thread():
    """One that Python knows nothing of, as NCCL's watchdog; after a while, when the stack of this one stands still."""
    event, timer = (ctypes.c_uint64 * 8)(), ctypes.c_void_p()  # struct sigevent, with SIGEV_THREAD and a function
    ctypes.c_int.from_buffer(event, 12).value = 2
    ctypes.c_void_p.from_buffer(event, 16).value = ctypes.cast(libc.abort, ctypes.c_void_p).value
    assert not libc.timer_create(1, event, ctypes.byref(timer))
    assert not libc.timer_settime(timer, 0, (ctypes.c_long * 4)(0, 0, 0, 300_000_000), None)
    threading.Event().wait(60)

def give_up():
    with phases.Phases(run, 3, 1) as stuck, stuck("backward"):
        threading.Event().wait(60)

with witnessed(run, 3):
    exec(sys.argv[2])
'''


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def die(run: Path, how: str) -> tuple[int, str]:
    """Return the exit status of a rank 3 that runs `how`, and the output of it and its witness."""
    done = subprocess.run([sys.executable, "-c", RANK, run, how], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("how", "number", "told"),
    [
        ("abort_in_a_thread()", signal.SIGABRT, "Aborted"),
        ("ctypes.string_at(0)", signal.SIGSEGV, "Segmentation fault"),
        ("os.kill(os.getpid(), signal.SIGBUS)", signal.SIGBUS, "Bus error"),
        ("os.kill(os.getpid(), signal.SIGILL)", signal.SIGILL, "Illegal instruction"),
        ("os.kill(os.getpid(), signal.SIGFPE)", signal.SIGFPE, "Floating point exception"),
    ],
)
def test_a_fault_in_native_code_is_one_line_with_stacks(tmp_path: Path, how: str, number: int, told: str) -> None:
    stacks = tmp_path / "run" / "stacks-rank3.txt"
    status, said = die(tmp_path / "run", how)
    assert status == -number
    (line,) = said.splitlines()
    assert line.startswith(f"error: rank 3 has died ({told}), ") and f"stacks go to {stacks}; the same" in line
    written = stacks.read_text()
    assert written.startswith(f"Fatal Python error: {told}") and 'File "<string>"' in written


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_rank_that_is_killed_is_one_line(tmp_path: Path, number: int) -> None:
    """This also holds before it handles SIGTERM."""
    restore = "" if number == signal.SIGKILL else f"signal.signal({int(number)}, signal.SIG_DFL); "  # as nohup has not
    status, said = die(tmp_path / "run", f"import signal; {restore}os.kill(os.getpid(), {int(number)})")
    assert status == -number
    (line,) = said.splitlines()
    assert line.startswith("error: rank 3 was killed") and line.endswith("resumes from the last checkpoint")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("how", "status", "lines"), [("pass", 0, 0), ("sys.exit(75)", 75, 0), ("1 / 0", 1, 1), ("give_up()", 1, 1)]
)
def test_what_a_rank_tells_itself_is_not_told_again(tmp_path: Path, how: str, status: int, lines: int) -> None:
    ended, said = die(tmp_path, how)
    assert ended == status
    told = [line for line in said.splitlines() if "rank 3" in line or "Error" in line]
    assert len(told) == lines and "died" not in said and "killed" not in said, said


def test_stacks_are_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mine")
    (tmp_path / "stacks-rank3.txt").symlink_to(tmp_path / "other")
    die(tmp_path, "ctypes.string_at(0)")
    assert (tmp_path / "other").read_text() == "mine"
    assert (tmp_path / "stacks-rank3.txt").read_text().startswith("Fatal Python error")


def test_stacks_that_cannot_be_written_follow_the_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    status, said = die(tmp_path / "run", "ctypes.string_at(0)")
    assert status == -signal.SIGSEGV and "Fatal Python error" in said


def test_memory_that_ran_out_is_named(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("pgfault 12\noom_kill 3\npgscan 0\n")
    assert killed_for_memory(vmstat) == 3 and killed_for_memory(tmp_path / "none") == 0
    assert killed_for_memory() >= 0
    assert "no memory left" in explain(b"", 3, tmp_path, memory_ran_out=True)
    assert "memory" not in explain(b"", 3, tmp_path, memory_ran_out=False)
    assert "Aborted" in explain(b"Fatal Python error: Aborted\n\n", 3, tmp_path, memory_ran_out=True)


def test_a_fault_in_a_run_is_told_and_its_peer_ends_with_one_line(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ranks = start(shards, run, "run.max_steps=100000")
    ranks.until(lambda: (run / "metrics.jsonl").exists() and len(metrics(run)) > 2)
    os.kill(ranks.pids[1], signal.SIGSEGV)
    assert ranks.wait(120) == [1, -signal.SIGSEGV]
    wait_until((run / "stacks-rank1.txt").exists)  # the witness may be a moment behind
    assert "rank 1 has died (Segmentation fault)" in ranks.said()
    errors = [line for line in ranks.said().splitlines() if line.startswith("error:")]
    assert len(errors) == 2 and "error: rank 0 lost another rank" in errors[0]
