"""The watchdog of a rank."""

import os
import subprocess
import sys
from pathlib import Path

STUCK = """
import sys, threading
from pathlib import Path
from pipeline.cluster import phases
phases._LAST_WORDS = 2
with phases.Phases(Path(sys.argv[1]), 3, 1) as stuck, stuck("backward"):
    stuck.step = 7
    threading.Event().wait(300)
"""


def test_storage_that_hangs_does_not_keep_a_stuck_rank_alive(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "stacks-rank3.txt")  # to open it waits for a reader, for ever
    done = subprocess.run([sys.executable, "-c", STUCK, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "error: rank 3 has been in 'backward' of step 7 for 1 s (run.deadline)" in done.stderr
