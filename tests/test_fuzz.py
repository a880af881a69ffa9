"""Spoilt inputs are refused in one line or accepted rightly: a short, seeded part of what `tests/fuzz/run.py` tries."""

import subprocess
import sys

from launching import CHECKOUT


def test_spoilt_inputs_never_end_in_a_traceback_a_hang_or_a_silent_error() -> None:
    command = [sys.executable, "tests/fuzz/run.py", "--seed", "0", "--attempts", "25", "--seconds", "45"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-20_000:]
    assert done.stdout.count("\n") == 8  # the heading, and a line for each of the seven subjects
