"""The nodes that a supervised run may use: check whether they answer, and end their ranks."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ANSWER = 20  # seconds for a node to answer
SSH = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "--"]  # arguments after it are not options
PROBE = f"{shlex.join(SSH)} {{host}} true"
NOTICE = "-o ServerAliveInterval=10 -o ServerAliveCountMax=3"  # otherwise ssh waits for hours for a disconnected node
STOP = Path(__file__).with_name("stop.py").resolve()


class Hosts:
    """The nodes of a host file, reached by ssh; without one, this machine alone.

    Args:
        slots: slots of each node by name; empty for this machine alone.
        probe: a command that succeeds where a node may be used; `{host}` in it is replaced by the name.
        run: `run.dir`, the same path on all nodes.
    """

    def __init__(self, slots: Mapping[str, int], probe: Sequence[str], run: Path) -> None:
        self._slots, self._probe, self._run = slots, probe, run.resolve()

    def __len__(self) -> int:
        return len(self._slots)

    def answering(self) -> list[str]:
        """Return the nodes that may be used now, in the order of the host file."""
        probes = {host: [argument.replace("{host}", host) for argument in self._probe] for host in self._slots}
        answers = _together(probes, ANSWER)
        return [host for host in self._slots if host in answers]

    def command(self, launcher: list[str], answering: list[str]) -> list[str]:
        """Return the launcher's command, `deepspeed ...`, for some of the nodes.

        A host file for it is written to the run's folder. Even a single node is reached by ssh, since it may not be
        this one.

        Raises:
            OSError: the file cannot be written.
        """
        file = self._run / "hosts"
        file.unlink(missing_ok=True)  # it may be a link
        file.write_text("".join(f"{host} slots={self._slots[host]}\n" for host in answering))
        return [launcher[0], "--hostfile", str(file), "--force_multi", *launcher[1:]]

    def environment(self) -> dict[str, str]:
        """Return this process's environment for the launcher, with an ssh that notices a disconnected node."""
        given = os.environ.get("PDSH_SSH_ARGS_APPEND", "")
        return os.environ | {"PDSH_SSH_ARGS_APPEND": f"{given} {NOTICE}".strip()}

    def signal_ranks(self, number: int) -> int:
        """Send a signal to the run's ranks on every node that answers; return their number."""
        return self._ranks("--signal", signal.Signals(number).name.removeprefix("SIG"), seconds=0)

    def end_ranks(self, seconds: float) -> int:
        """Send SIGTERM to the ranks, and SIGKILL after `seconds` seconds; return their number."""
        return self._ranks("--end", str(seconds), seconds=seconds)

    def _ranks(self, *options: str, seconds: float) -> int:
        command = [sys.executable, "-P", str(STOP), str(self._run), *options]
        remote = {host: [*SSH, host, shlex.join(command)] for host in self._slots}
        answers = _together(remote or {"": command}, ANSWER + seconds).values()
        counts = [re.search(r"^([0-9]+)\s*\Z", answer, re.MULTILINE) for answer in answers]  # after a shell's greeting
        return sum(int(count[1]) for count in counts if count)


def _together(commands: dict[str, list[str]], seconds: float) -> dict[str, str]:
    """Run a command for each name, all at once; return the output of those that succeeded within the time."""
    with ThreadPoolExecutor(max(1, len(commands))) as pool:
        answers = zip(commands, pool.map(lambda command: _answer(command, seconds), commands.values()), strict=True)
        return {name: answer for name, answer in answers if answer is not None}


def _answer(command: list[str], seconds: float) -> str | None:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=seconds, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")
