"""Attack the product with spoilt inputs, seeded, and count what becomes of them.

    python tests/fuzz/run.py [--seed 0] [--attempts 20] [--seconds 60] [--subjects tars images]

Each attempt runs in a process of its own kind that is killed when it takes longer than 20 seconds or 8 GB of memory.
Prints a table and, for everything that is neither refused in one line nor rightly accepted, the seed that repeats it:
`--seed S --attempts 1 --subjects NAME`. Exit status 1 if there was any.
"""

import argparse
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "fuzz")]
os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}

_SECONDS = 20.0  # an attempt may take
_MEMORY = 8 * 2**30  # bytes of addresses that its process may use ...
_ATTEMPTS = 40  # ... which makes this many: each training run in it leaves threads, and the addresses of their stacks


class Worker:
    """A process that makes attempts on one subject."""

    def __init__(self, subject: str) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, end = context.Pipe()
        self._process = context.Process(target=_work, args=(subject, end), daemon=True)
        self._process.start()
        self._pipe.recv()  # it is ready

    def attempt(self, seed: str) -> str:
        """Return "refused", "accepted" or what went wrong, and end the process after anything else."""
        self._pipe.send(seed)
        if not self._pipe.poll(_SECONDS):
            return f"took more than {_SECONDS:g} s"
        try:
            return str(self._pipe.recv())
        except EOFError:
            self._process.join()
            return f"the process died ({self._process.exitcode})"

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def _work(name: str, pipe: Any) -> None:
    from subjects import SUBJECTS

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    for descriptor in (1, 2):  # of decoders written in C, too
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    with tempfile.TemporaryDirectory() as shared:
        subject = SUBJECTS[name](Path(shared))
        pipe.send("ready")
        while True:
            seed = pipe.recv()
            with tempfile.TemporaryDirectory() as folder:
                try:
                    outcome = subject.attempt(random.Random(seed), Path(folder))
                except BaseException:
                    outcome = traceback.format_exc()
            pipe.send(outcome)


def main() -> int:
    """Return 0 when every input was refused in one line or rightly accepted."""
    from subjects import SUBJECTS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the first attempt on each subject")
    parser.add_argument("--attempts", type=int, default=20, help="on each subject, at most")
    parser.add_argument("--seconds", type=float, default=60, help="for all subjects together, shared out evenly")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    arguments = parser.parse_args()
    failures = 0
    print(f"{'':12} {'tried':>6} {'refused':>8} {'accepted':>9} {'failed':>7} {'seconds':>8}")
    for name in arguments.subjects:
        begun, worker, counts = time.monotonic(), Worker(name), Counter[str]()
        for seed in range(arguments.seed, arguments.seed + arguments.attempts):
            if counts.total() and counts.total() % _ATTEMPTS == 0:
                worker.close()
                worker = Worker(name)
            outcome = worker.attempt(f"{name} {seed}")
            known = outcome in ("refused", "accepted")
            counts[outcome if known else "failed"] += 1
            if not known:
                print(f"\n{name}, --seed {seed}:\n{outcome}", file=sys.stderr)
                worker.close()
                worker = Worker(name)
            if time.monotonic() - begun > arguments.seconds / len(arguments.subjects):
                break
        worker.close()
        failures += counts["failed"]
        row = counts.total(), counts["refused"], counts["accepted"], counts["failed"], time.monotonic() - begun
        print("{:12} {:6} {:8} {:9} {:7} {:8.1f}".format(name, *row), flush=True)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
