"""Signal the ranks of a run on this machine, or see to it that they end. Launchers are left alone: they follow.

    python scripts/launch/stop.py RUN [--signal TERM | --end SECONDS]

RUN is the run's folder, as in run.dir=RUN. Prints how many ranks there were.

Examples:

    python scripts/launch/stop.py /runs/base --signal USR1     all ranks, on all nodes, save and exit with status 75
    python scripts/launch/stop.py /runs/base --end 30          the same by SIGTERM; SIGKILL to what lives after 30 s
"""

import argparse
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path


def ranks(run: Path) -> list[int]:
    """Process ids of those that train the run in folder `run`: this user's Pythons, with a script and its run.dir."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):  # ended meanwhile
            if process.stat().st_uid != os.getuid():
                continue
            arguments = (process / "cmdline").read_bytes().decode().split("\0")
            if _trains(arguments, run.resolve(), (process / "cwd").resolve()):
                found[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    return [process for process, parent in found.items() if parent not in found]  # without their forks


def signal_ranks(run: Path, number: int) -> list[int]:
    """Send a signal to all of them; who they were."""
    found = ranks(run)
    for process in found:
        with suppress(ProcessLookupError):
            os.kill(process, number)
    return found


def end_ranks(run: Path, seconds: float) -> list[int]:
    """Ask all to stop, wait for their end, and kill those that still live after so long; who they were."""
    asked = signal_ranks(run, signal.SIGTERM) if seconds else []
    _await_end(run, seconds)
    killed = signal_ranks(run, signal.SIGKILL)
    _await_end(run, 10)  # what a killed process held on a GPU takes a moment to come free
    return sorted({*asked, *killed})


def _await_end(run: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while ranks(run) and time.monotonic() < deadline:
        time.sleep(0.1)


def _trains(arguments: list[str], run: Path, folder: Path) -> bool:
    """Whether a command, run in `folder`, is a rank's: python, options, a script that trains, ..., run.dir=RUN."""
    script = next((argument for argument in arguments[1:] if not argument.startswith("-")), "")
    values = [argument.removeprefix("run.dir=") for argument in arguments if argument.startswith("run.dir=")]
    is_script = script.endswith(".py") and Path(script).name != "supervise.py"
    return is_script and bool(values) and (folder / values[-1]).resolve() == run


def main() -> int:
    """Exit status 0, whether there were ranks or not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run.dir of the run")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--signal", choices=["TERM", "USR1", "INT"], help="send it, and do not wait")
    what.add_argument("--end", type=float, metavar="SECONDS", help="SIGTERM, and SIGKILL after so long")
    arguments = parser.parse_args()
    if arguments.signal:
        found = signal_ranks(arguments.run, signal.Signals[f"SIG{arguments.signal}"])
    else:
        found = end_ranks(arguments.run, arguments.end)
    print(len(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
