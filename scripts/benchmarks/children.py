"""Processes that a benchmark starts, none of which outlives its time."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress

_LAST = 10  # seconds for a process that was killed to be gone, which one that waits for a device may never be


def run(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> str:
    """Run a command, and kill it when its time is over, and all that it started with it.

    Returns:
        What went wrong, with the last of its output; empty if nothing did.
    """
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        try:
            status = process.wait(seconds)
            problem = f"exit status {status}" if status else ""
        except subprocess.TimeoutExpired:
            problem = f"stopped after {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):  # it may be gone, and have left others behind
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LAST)
        output.seek(0)
        return problem and f"{problem}; it said last: {output.read()[-700:]}"
