"""Signal the ranks of a run on this machine, or ensure that they end. Launchers are left alone: they follow.

    maskfeat stop RUN (--signal TERM | --end SECONDS)

RUN is the run's folder, as in run.dir=RUN. Prints the number of ranks. A rank is a Python process of this user that
runs a script with this run.dir, except the scripts here that do not train.

Examples:

    maskfeat stop /runs/base --signal USR1     all ranks, on all nodes, save and exit with status 75
    maskfeat stop /runs/base --end 30          the same by SIGTERM; SIGKILL to those left after 30 s
"""

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

# These also take run.dir=RUN
DO_NOT_TRAIN = ("supervise.py", "doctor.py", "estimate.py", "probe.py", "validate.py", "words.py", "bench.py")
RANK = "rank.py"  # runs the command in its arguments, for `maskfeat`


def ranks(run: Path) -> list[int]:
    """Return the process ids of the ranks of the run in folder `run`."""
    run, found = Path(os.path.realpath(run)), {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):  # the process has ended
            if process.stat().st_uid != os.getuid() or not (process / "exe").readlink().name.startswith("python"):
                continue
            arguments = os.fsdecode((process / "cmdline").read_bytes()).split("\0")
            if _trains(arguments) and run_dir(arguments, process / "cwd") == run:
                found[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    return [process for process, parent in found.items() if parent not in found]  # without their forks


def signal_ranks(run: Path, number: int) -> list[int]:
    """Send a signal to all ranks; return their process ids."""
    found = ranks(run)
    for process in found:
        with suppress(ProcessLookupError):
            os.kill(process, number)
    return found


def end_ranks(run: Path, seconds: float) -> list[int]:
    """Ask all ranks to stop, and kill those that remain after `seconds`; return the process ids of all."""
    asked = signal_ranks(run, signal.SIGTERM) if seconds else []
    _await_end(run, seconds)
    killed = signal_ranks(run, signal.SIGKILL)
    _await_end(run, 10)  # a killed process's GPU memory takes a moment to be freed
    return sorted({*asked, *killed})


def _await_end(run: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while ranks(run) and time.monotonic() < deadline:
        time.sleep(0.1)


def run_dir(arguments: Iterable[str], folder: Path) -> Path | None:
    """Return the run.dir of a command that was started in `folder`; None if it has none.

    The last one counts, and `~` is expanded, as in a recipe.
    """
    given = [argument.partition("=")[2] for argument in arguments if re.match(r"\s*run\.dir\s*=", argument)]
    if not given:
        return None
    value = given[-1].strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    with suppress(RuntimeError):  # `~` of no user: a name like any other
        value = str(Path(value).expanduser()) if value else ""
    return Path(os.path.realpath(folder / value)) if value else None


def _trains(arguments: list[str]) -> bool:
    """Return whether a Python process with these arguments is a rank."""
    script, following = _script(arguments)
    name = Path(script).name
    if name == RANK and following:
        name = f"{following[0]}.py"
    return name.endswith(".py") and name not in DO_NOT_TRAIN


def _script(arguments: list[str]) -> tuple[str, list[str]]:
    """Return the script of a Python process with these arguments, or its module's file name, and further arguments.

    Both are empty for a launcher.
    """
    rest = iter(arguments[1:])
    for argument in rest:
        if option := re.fullmatch(r"-[^cmWX-]*([cmWX])(.*)", argument, re.DOTALL):  # options that take a value
            letter, value = option.groups()
            value = value or next(rest, "")
            if letter == "m":  # launchers are also modules
                trains = value.endswith((".pretrain", ".finetune"))
                return (f"{value.rpartition('.')[2]}.py" if trains else ""), [*rest]
            if letter == "c":
                return "", []
        elif argument in ("--", "-"):
            return (next(rest, "") if argument == "--" else ""), [*rest]
        elif argument == "--check-hash-based-pycs":
            next(rest, "")
        elif not argument.startswith("-"):
            return argument, [*rest]
    return "", []


def seconds(text: str) -> float:
    """Parse a length of time in seconds.

    Raises:
        ValueError: it is not a length of time.
    """
    value = float(text)
    if not 0 <= value <= 1e8:
        raise ValueError
    return value


def main() -> int:
    """Return 0, with or without ranks."""
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the run.dir of the run")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--signal", choices=["TERM", "USR1", "INT"], help="signal to send without waiting")
    what.add_argument("--end", type=seconds, metavar="SECONDS", help="send SIGTERM, and SIGKILL after this time")
    arguments = parser.parse_args()
    if arguments.signal:
        found = signal_ranks(arguments.run, signal.Signals[f"SIG{arguments.signal}"])
    else:
        found = end_ranks(arguments.run, arguments.end)
    print(len(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
