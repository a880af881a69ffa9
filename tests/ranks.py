"""Ranks of a run as processes of their own, started at once: they are forks of one that has imported everything.

Each is a real process that runs one of scripts from its first line, and may be signalled, stopped and killed; only
the launcher, and its seconds of imports, are left out.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["ranks_preload"])


class Ranks:
    """A number of ranks of a run on this machine.

    Args:
        size: how many.
        arguments: those of the script.
        log: file prefix that gets what each rank says.
        script: what each rank runs.
    """

    def __init__(
        self, size: int, arguments: list[str], log: Path, port: int, script: str = "scripts/pretrain.py"
    ) -> None:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "tests")])  # for the fork server
        log.parent.mkdir(parents=True, exist_ok=True)
        self.logs = [log.with_name(f"{log.name}-rank{rank}.txt") for rank in range(size)]
        self._processes = []
        for rank, path in enumerate(self.logs):
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            process = _context.Process(target=_run, args=([script, *arguments], environment, str(path)), daemon=True)
            process.start()
            self._processes.append(process)

    @property
    def pids(self) -> list[int]:
        return [process.pid or 0 for process in self._processes]

    def kill(self) -> None:
        """SIGKILL to all at once."""
        for rank in range(len(self._processes)):
            self.signal(rank, signal.SIGKILL)
        self.wait(30)

    def signal(self, rank: int, number: signal.Signals) -> None:
        process = self._processes[rank]
        if process.is_alive():
            os.kill(process.pid or 0, number)

    def wait(self, seconds: float) -> list[int | None]:
        """Return exit statuses, negative for a signal; None for a rank that did not end in time."""
        deadline = time.monotonic() + seconds
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
        return [process.exitcode for process in self._processes]

    def until(self, happened: Callable[[], bool], seconds: float = 120) -> None:
        """Wait for something that the running ranks do."""
        deadline = time.monotonic() + seconds
        while not happened():
            ended = [process.exitcode for process in self._processes if process.exitcode is not None]
            waiting = not ended and time.monotonic() < deadline
            assert waiting, f"the ranks ended ({ended}) or hang: {self.said()[-3000:]}"
            time.sleep(0.003)

    def said(self) -> str:
        """Return the output, rank by rank."""
        return "".join(path.read_text() for path in self.logs if path.exists())


def _run(arguments: list[str], environment: dict[str, str], log: str) -> None:
    """Become the script, the first of the arguments."""
    os.environ.update(environment)
    os.chdir(CHECKOUT)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = arguments
    sys.path.insert(0, str(CHECKOUT / Path(arguments[0]).parent))  # as Python does
    atexit._clear()  # those of the fork server
    status: int | str | None = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))
