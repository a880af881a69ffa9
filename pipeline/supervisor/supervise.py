"""Keep a run going: start its launcher, and restart it when it fails.

    maskfeat supervise [options] -- COMMAND ... run.dir=RUN ...

COMMAND is any launcher's: deepspeed, torchrun, srun. When it fails, its remaining processes are ended on every node,
and it is started again after a pause that doubles with each failure. After --tries consecutive failures without
progress, the supervisor gives up. SIGTERM, SIGUSR1, SIGINT or SIGHUP to it stops the run: all ranks save and exit.

With --hostfile, which is passed to COMMAND (`deepspeed`), nodes that do not answer are skipped as long as at least
--min-nodes answer. They are tested before every start, so one that came back is used again.

Every attempt is a line here and in RUN/lives-NODE.jsonl: its time, end, last step and nodes.

Exit status: 0 the run is complete; 1 given up; 2 wrong usage, of this program or of COMMAND; 75 it was asked to stop,
and the same command resumes.

Examples, each on one line:

    maskfeat supervise -- maskfeat pretrain vit_base_300e data.shards=/data/train
        run.dir=/runs/base

    maskfeat supervise --hostfile hosts --min-nodes 6 -- deepspeed scripts/pretrain.py vit_large_1600e
        data.shards=/data/train run.dir=/runs/large

    ... --probe 'ssh -o BatchMode=yes {host} nvidia-smi'    a node must also answer for its GPUs
"""

import argparse
import fcntl
import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from io import FileIO
from pathlib import Path

from pipeline.supervisor.hosts import Hosts
from pipeline.supervisor.options import parse
from pipeline.supervisor.signals import STOP, Signals
from shards.terminal import note, prepare
from shards.text import one_line

RESUME = 75  # the exit status of a run that was asked to stop
NOT_UNDERSTOOD = 2


@dataclass
class Attempt:
    """One start of the launcher: its line in RUN/lives-NODE.jsonl. `status` is None if it has none."""

    began: str
    hosts: list[str]
    status: int | None = None
    why: str = ""
    step: int = 0
    ended: str = ""


class Supervisor:
    """Starts `command` until the run is complete, is asked to stop, or fails repeatedly."""

    def __init__(self, options: argparse.Namespace, run: Path, hosts: Hosts, log: FileIO) -> None:
        self._options, self._run, self._hosts, self._log = options, run, hosts, log
        self._signals = Signals()
        self._asked = False

    def run(self) -> int:
        """Run, and return the exit status of this program's description."""
        options = self._options
        if left := self._hosts.end_ranks(options.grace):
            say(f"ended {left} remaining ranks of an earlier attempt of {self._run}")
        furthest, failures = reached(self._run), 0
        while True:
            attempt = self._attempt()
            attempt.step, attempt.ended = reached(self._run), now()
            self._write(attempt)
            say(f"attempt {attempt.began} to {attempt.ended}: {attempt.why}, step {attempt.step}")
            if attempt.status in (0, NOT_UNDERSTOOD):
                return attempt.status
            if self._asked or (attempt.status == RESUME and not options.requeue):
                return RESUME
            if attempt.status == RESUME:
                continue

            failures = 1 if attempt.step > furthest else failures + 1
            furthest = max(furthest, attempt.step)
            if failures >= options.tries:
                say(f"gave up after {failures} failures in a row at step {furthest}; their errors are above")
                return 1
            pause = min(options.longest_pause, options.pause * 2 ** min(failures - 1, 60)) * random.uniform(0.5, 1)
            say(f"failure {failures} of {options.tries} at step {furthest}: restarting in {pause:.0f} s")
            if self._signals.asked_within(pause):
                return RESUME

    def _attempt(self) -> Attempt:
        """Start the launcher and wait for the end of everything that it started."""
        options, environment = self._options, self._hosts.environment()
        command: list[str] = options.command
        answering: list[str] = []
        if len(self._hosts):
            answering = self._hosts.answering()
            if len(answering) < options.min_nodes:
                why = f"only {len(answering)} of {len(self._hosts)} nodes answer, {options.min_nodes} are needed"
                return Attempt(now(), answering, why=why)
            try:
                command = self._hosts.command(command, answering)
            except OSError as error:
                why = f"{self._run}/hosts cannot be written: {error.strerror}"
                return Attempt(now(), answering, why=why)
        attempt = Attempt(now(), answering)
        complete = self._run / "complete"
        try:
            complete.unlink(missing_ok=True)
        except OSError as error:
            attempt.why = f"{complete} of an earlier attempt cannot be removed: {error.strerror}"
            return attempt
        try:
            launcher = subprocess.Popen(command, env=environment, start_new_session=True)
        except OSError as error:
            attempt.status, attempt.why = NOT_UNDERSTOOD, f"{command[0]}: {error.strerror}"
            return attempt
        attempt.status = self._await(launcher)
        left = self._hosts.end_ranks(self._options.grace)  # a launcher can die before its ranks, even with status 0
        _signal_all(launcher, signal.SIGKILL)
        if left and not self._asked:
            attempt.status, attempt.why = 1, f"the launcher ended before {left} of its ranks"
        elif attempt.status == 0 and not complete.exists():
            attempt.status, attempt.why = 1, "the launcher ended with status 0, but the run is not marked as complete"
        else:
            attempt.why = self._explain(attempt.status)
        return attempt

    def _await(self, launcher: "subprocess.Popen[bytes]") -> int:
        """Return the launcher's exit status; passes requests to stop on to the ranks, and waits for their end."""
        deadline = None
        while launcher.poll() is None:
            number = self._signals.next(None if deadline is None else max(0, deadline - time.monotonic()))
            if number in STOP:
                self._asked = True
                deadline = deadline or time.monotonic() + self._options.grace
                if not self._hosts.signal_ranks(signal.SIGTERM if number == signal.SIGHUP else number):
                    _signal_all(launcher, signal.SIGTERM)  # it has not started them yet
            elif number is None:
                self._hosts.end_ranks(0)
                _signal_all(launcher, signal.SIGKILL)
                launcher.wait()
        return launcher.returncode

    def _write(self, attempt: Attempt) -> None:
        try:
            self._log.write((json.dumps(asdict(attempt)) + "\n").encode())
        except OSError as error:  # a full disk must not end the supervisor
            say(f"{self._log.name}: {error.strerror}")

    def _explain(self, status: int) -> str:
        if status == 0:
            return "complete"
        if status == RESUME:
            return "stopped, as asked"
        if status == NOT_UNDERSTOOD:
            return "the command was not understood"
        how = _named(status)
        return f"asked to stop, and ended with {how}" if self._asked else f"failed with {how}"


def _named(status: int) -> str:
    """Describe a launcher's status, with the signal that ended it, or that ended one of its ranks.

    For the latter, shells and srun use 128 + its number, and DeepSpeed's launcher uses 256 - its number.
    """
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    for number in (status - 128, 256 - status):
        with suppress(ValueError):
            return f"status {status}: a rank was ended by {signal.Signals(number).name}"
    return f"status {status}"


def _signal_all(launcher: "subprocess.Popen[bytes]", number: int) -> None:
    """Signal the launcher and the processes that it started here and that are still in its process group."""
    with suppress(ProcessLookupError):
        os.killpg(launcher.pid, number)


def reached(run: Path) -> int:
    """Return the last step that a run logged or saved, 0 if none."""
    names = [folder.name for folder in (run / "checkpoints").glob("step-*")]
    steps = [int(name[5:]) for name in names if re.fullmatch("step-[0-9]{1,18}", name)]
    with suppress(OSError):
        for line in (run / "metrics.jsonl").read_bytes().splitlines()[-2:]:
            with suppress(ValueError, TypeError, KeyError, RecursionError):  # the last one may be torn by a crash
                step = json.loads(line)["step"]
                steps += [step] if isinstance(step, int) else []
    return max(steps, default=0)


def now() -> str:
    """Return the local time with its offset, ISO 8601, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def say(text: str) -> None:
    """Print a line for the operator."""
    note(f"supervise: {text}")


def main() -> int:
    """Return the exit status of this program's description."""
    prepare()
    options, run, hosts = parse(__doc__)
    try:
        run.mkdir(parents=True, exist_ok=True)
        log = (run / f"lives-{socket.gethostname()}.jsonl").open("ab", buffering=0)
    except OSError as error:
        say(f"run.dir: {one_line(str(error.filename))}: {error.strerror}: name a folder that you may write to")
        return NOT_UNDERSTOOD
    with log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another supervisor on this node keeps {one_line(str(run))} going: end that one first")
            return NOT_UNDERSTOOD
        except OSError as error:
            say(f"run.dir: {one_line(str(run))}: {error.strerror}: choose a file system on which files can be locked")
            return NOT_UNDERSTOOD
        return Supervisor(options, run, hosts, log).run()
