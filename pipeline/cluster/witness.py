"""Run a process beside each rank, which reports how the rank died where the rank itself cannot.

A fault in native code and an abort, by which NCCL's watchdog ends a process from its own thread, leave time only for
Python's fault handler; SIGKILL, by which the kernel frees memory, leaves none. So the fault handler writes the
stacks of all threads into a pipe, and the witness reads the pipe until it closes, which is the end of the rank.
"""

import faulthandler
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.terminal import note

_DISMISSED = b"\0"  # the last byte of a rank that has reported its end itself
_PATIENCE = 10  # seconds for the last message: the storage, or the reader of the output, may hang
_RESUMES = "the same command resumes from the last checkpoint"

_pipe: int | None = None  # from this process to its witness


@contextmanager
def witnessed(folder: Path, rank: int) -> Iterator[None]:
    """Report this process's death in one line, within the context; stacks are written to stacks-rank{r}.txt.

    Args:
        folder: `run.dir`.
        rank: this rank.
    """
    global _pipe
    read, _pipe = os.pipe()
    command = [sys.executable, "-P", "-m", __name__, str(folder), str(rank)]
    # In its own session, so that a signal to the rank's process group does not end it, too
    witness = subprocess.Popen(command, stdin=read, start_new_session=True)
    os.close(read)
    faulthandler.enable(_pipe)
    try:
        yield
    finally:
        faulthandler.disable()
        dismiss()
        with suppress(subprocess.TimeoutExpired):
            witness.wait(_PATIENCE)


def dismiss() -> None:
    """Dismiss this process's witness, if there is one, since the end is already reported."""
    global _pipe
    if _pipe is not None:
        with suppress(OSError):  # it was killed
            os.write(_pipe, _DISMISSED)
        os.close(_pipe)
        _pipe = None


def explain(words: bytes, rank: int, stacks: Path, memory_ran_out: bool) -> str:
    """Return the line about a rank's death.

    Args:
        words: the fault handler's output; empty where there was no time.
        stacks: the file of the stacks.
        memory_ran_out: the kernel has killed processes of this node for lack of memory meanwhile.
    """
    if fault := re.match(rb"Fatal Python error: (.*)", words):
        how = fault[1].decode(errors="replace")
        return (
            f"error: rank {rank} has died ({how}), and the library's message about it is above; stacks go to {stacks}; "
            f"{_RESUMES}"
        )
    if memory_ran_out:
        return (
            f"error: rank {rank} was killed while its node had no memory left (dmesg has more): give it more, or lower "
            f"data.decode_threads, or the ranks of a node; {_RESUMES}"
        )
    return f"error: rank {rank} was killed (by SIGKILL, unless a line above says more); {_RESUMES}"


def killed_for_memory(vmstat: Path = Path("/proc/vmstat")) -> int:
    """Return the number of processes that this node's kernel has killed for lack of memory since it booted."""
    with suppress(OSError):
        if count := re.search(r"^oom_kill (\d+)$", vmstat.read_text(), re.MULTILINE):
            return int(count[1])
    return 0


def _watch(folder: Path, rank: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # launchers send them to all descendants, whom a rank outlives
    before = killed_for_memory()
    words = sys.stdin.buffer.read()
    if words.endswith(_DISMISSED):
        return
    signal.alarm(_PATIENCE)
    stacks = folder / f"stacks-rank{rank}.txt"
    note(explain(words, rank, stacks, killed_for_memory() > before))
    if words:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stacks.unlink(missing_ok=True)  # it may be a link
            stacks.write_bytes(words)
        except OSError:
            sys.stderr.buffer.write(words)


if __name__ == "__main__":
    _watch(Path(sys.argv[1]), int(sys.argv[2]))
