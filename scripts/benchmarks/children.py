"""Start processes of a benchmark, and end them when their time is over."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress

_LAST = 10  # seconds for a killed process to end; one that waits for a device may never do so


def run(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> str:
    """Run a command, and kill it with all its descendants when its time is over.

    Returns:
        The error, with the last of the output; empty on success.
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
