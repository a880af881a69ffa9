"""Keep a run going: start its launcher, and start it again when it fails.

    python scripts/launch/supervise.py [options] -- COMMAND ... run.dir=RUN ...

COMMAND is any launcher's: deepspeed, torchrun, srun. When it fails, what is left of it is ended on every node, and it
is started again after a pause that doubles from failure to failure. After --tries failures in a row, none of which got
further than the one before, the supervisor gives up. SIGTERM, SIGUSR1, SIGINT or SIGHUP to it stops the run: all ranks
save and exit.

With --hostfile, which is handed on to COMMAND (`deepspeed`), nodes that do not answer are left out as long as at least
--min-nodes do. They are asked before every start, so one that came back is taken again.

Every life of the run is a line here and in RUN/lives-NODE.jsonl: when, how it ended, the step reached, on which nodes.

Exit status: 0 the run is complete; 1 given up; 2 not understood, by this program or by COMMAND; 75 it was asked to
stop, and the same command goes on.

Examples, each on one line:

    python scripts/launch/supervise.py -- deepspeed scripts/pretrain.py vit_base_300e data.shards=/data/train
        run.dir=/runs/base

    python scripts/launch/supervise.py --hostfile hosts --min-nodes 6 -- deepspeed scripts/pretrain.py vit_large_1600e
        data.shards=/data/train run.dir=/runs/large

    ... --probe 'ssh -o BatchMode=yes {host} nvidia-smi'    a node must also answer for its GPUs
"""

import argparse
import fcntl
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from io import FileIO
from pathlib import Path

from hosts import PROBE, Hosts

from shards.terminal import Parser, note, prepare

RESUME = 75  # the exit status of a run that was asked to stop
NOT_UNDERSTOOD = 2
STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class Signals:
    """Signals to this process, one after the other: those that ask it to stop, and SIGCHLD."""

    def __init__(self) -> None:
        self._read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (*STOP, signal.SIGCHLD):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it for SIGHUP
                signal.signal(number, lambda number, frame: None)

    def next(self, seconds: float | None) -> int | None:
        """The next one; None when none came for so long."""
        ready, _, _ = select.select([self._read], [], [], seconds)
        return os.read(self._read, 1)[0] if ready else None

    def asked_within(self, seconds: float) -> bool:
        """Wait for so long, or until asked to stop; whether that was it."""
        deadline = time.monotonic() + seconds
        while (number := self.next(max(0, deadline - time.monotonic()))) is not None:
            if number in STOP:
                return True
        return False


@dataclass
class Life:
    """One start of the launcher: its line in RUN/lives-NODE.jsonl. `status` is None where it came to none."""

    began: str
    hosts: list[str]
    status: int | None = None
    why: str = ""
    step: int = 0
    ended: str = ""


class Supervisor:
    """Starts `command` until the run is complete, is asked to stop, or fails again and again."""

    def __init__(self, options: argparse.Namespace, run: Path, hosts: Hosts, log: FileIO) -> None:
        self._options, self._run, self._hosts, self._log = options, run, hosts, log
        self._signals = Signals()
        self._asked = False

    def run(self) -> int:
        """The exit status, as in this program's description."""
        options = self._options
        if left := self._hosts.end_ranks(options.grace):
            say(f"ended {left} ranks that an earlier life of {self._run} had left")
        furthest, failures = reached(self._run), 0
        while True:
            life = self._live()
            life.step, life.ended = reached(self._run), now()
            self._write(life)
            say(f"life {life.began} to {life.ended}: {life.why}, step {life.step}")
            if life.status in (0, NOT_UNDERSTOOD):
                return life.status
            if self._asked or (life.status == RESUME and not options.requeue):
                return RESUME
            if life.status == RESUME:
                continue

            failures = 1 if life.step > furthest else failures + 1
            furthest = max(furthest, life.step)
            if failures >= options.tries:
                say(
                    f"gave up: {failures} failures in a row got no further than step {furthest}; their errors are above"
                )
                return 1
            pause = min(options.longest_pause, options.pause * 2 ** (failures - 1)) * random.uniform(0.5, 1)
            say(f"failure {failures} of {options.tries} at step {furthest}: starting again in {pause:.0f} s")
            if self._signals.asked_within(pause):
                return RESUME

    def _live(self) -> Life:
        """Start the launcher and wait for the end of everything that it started."""
        command, environment, answering = self._options.command, self._hosts.environment(), {}
        if len(self._hosts):
            answering = self._hosts.answering()
            if len(answering) < self._options.min_nodes:
                why = f"only {len(answering)} of {len(self._hosts)} nodes answer, {self._options.min_nodes} are needed"
                return Life(now(), list(answering), why=why)
            try:
                command = self._hosts.command(command, answering)
            except OSError as error:
                why = f"{self._run}/hosts cannot be written: {error.strerror}"
                return Life(now(), list(answering), why=why)
        life = Life(now(), list(answering))
        complete = self._run / "complete"
        complete.unlink(missing_ok=True)
        try:
            launcher = subprocess.Popen(command, env=environment, start_new_session=True)
        except OSError as error:
            life.status, life.why = NOT_UNDERSTOOD, f"{command[0]}: {error.strerror}"
            return life
        life.status = self._await(launcher)
        left = self._hosts.end_ranks(self._options.grace)  # a launcher can die before its ranks, even with status 0
        _signal_all(launcher, signal.SIGKILL)
        if left and not self._asked:
            life.status, life.why = 1, f"the launcher ended before {left} of its ranks"
        elif life.status == 0 and not complete.exists():
            life.status, life.why = 1, "the launcher ended with status 0, but the run did not say that it is complete"
        else:
            life.why = self._explain(life.status)
        return life

    def _await(self, launcher: "subprocess.Popen[bytes]") -> int:
        """The launcher's exit status; passes requests to stop on to the ranks, whom it waits for."""
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

    def _write(self, life: Life) -> None:
        try:
            self._log.write((json.dumps(asdict(life)) + "\n").encode())
        except OSError as error:  # a full disk must not end what starts the run again
            say(f"{self._log.name}: {error.strerror}")

    def _explain(self, status: int) -> str:
        if status == 0:
            return "complete"
        if status == RESUME:
            return "stopped, as asked"
        if status == NOT_UNDERSTOOD:
            return "the command was not understood"
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        return f"asked to stop, and ended with {how}" if self._asked else f"failed with {how}"


def _signal_all(launcher: "subprocess.Popen[bytes]", number: int) -> None:
    """Signal the launcher and what it started here, but for those that left its process group."""
    with suppress(ProcessLookupError):
        os.killpg(launcher.pid, number)


def reached(run: Path) -> int:
    """The last step that a run logged or saved, 0 if none."""
    steps = [int(folder.name.removeprefix("step-")) for folder in (run / "checkpoints").glob("step-*[0-9]")]
    metrics = run / "metrics.jsonl"
    for line in metrics.read_text().splitlines()[-2:] if metrics.exists() else []:
        with suppress(ValueError):  # the last one, torn by a crash
            steps.append(int(json.loads(line)["step"]))
    return max(steps, default=0)


def now() -> str:
    """Local time with its offset, ISO 8601, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def say(text: str) -> None:
    """A line for the operator."""
    note(f"supervise: {text}")


def main() -> int:
    """Exit status as in this program's description."""
    prepare()
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=5, help="failures in a row without getting further (default 5)")
    parser.add_argument("--pause", type=float, default=15, help="seconds before the second start (default 15)")
    parser.add_argument("--longest-pause", type=float, default=600, help="seconds that pauses grow to (default 600)")
    parser.add_argument(
        "--grace", type=float, default=60, help="seconds from a request to stop to SIGKILL (default 60)"
    )
    parser.add_argument(
        "--requeue", action="store_true", help="start again at once what others asked to stop (status 75)"
    )
    parser.add_argument("--hostfile", type=Path, help="DeepSpeed's: lines of 'name slots=N'")
    parser.add_argument("--min-nodes", type=int, help="start with so many (default: all of the host file)")
    parser.add_argument("--probe", default=PROBE, help=f"succeeds where a node may be used (default: {PROBE!r})")
    parser.add_argument("command", nargs="+", help="the launcher's command, after --")
    options = parser.parse_args()

    runs = [argument.removeprefix("run.dir=") for argument in options.command if argument.startswith("run.dir=")]
    if not runs:
        parser.error("the command has no run.dir=RUN, by whose checkpoints progress is known: add it")
    if options.hostfile and (Path(options.command[0]).name != "deepspeed" or "--hostfile" in options.command):
        parser.error(
            "--hostfile is handed on to `deepspeed`: begin the command with that, without a --hostfile of its own"
        )
    try:
        hosts = Hosts(options.hostfile, options.probe, Path(runs[-1]))
    except OSError as error:
        parser.error(f"--hostfile {options.hostfile}: {error.strerror}")
    if options.min_nodes is None:
        options.min_nodes = len(hosts)

    run = Path(runs[-1])
    run.mkdir(parents=True, exist_ok=True)
    with (run / f"lives-{socket.gethostname()}.jsonl").open("ab", buffering=0) as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            parser.error(f"another supervisor on this node keeps {run} going: end that one first")
        return Supervisor(options, run, hosts, log).run()


if __name__ == "__main__":
    sys.exit(main())
