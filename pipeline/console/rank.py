"""One process of a command: `python rank.py COMMAND ARGUMENTS`, which `maskfeat` passes to launchers.

Launchers put the working directory before the installed packages, by `python -m` or PYTHONPATH. So this file first
imports our packages from its own location, so that a user's `model.py` is not mistaken for ours.
"""

import os
import signal
import sys
from importlib import import_module
from pathlib import Path

PACKAGES = ("shards", "model", "pipeline")
HERE = Path(__file__).absolute().parent


def load_packages() -> None:
    """Import our packages from the folder above this file's, whatever the search path begins with."""
    root = str(HERE.parents[1])
    path = sys.path
    sys.path = [root, *path]
    for name in PACKAGES:
        import_module(name)
    sys.path = path
    if given := os.environ.get("PYTHONPATH"):  # for the processes that this one starts
        os.environ["PYTHONPATH"] = os.pathsep.join((root, given))


def main(interruptible: bool) -> None:
    """Run the command and end the process with its status. `interruptible` restores Python's handler of SIGINT."""
    command, *arguments = sys.argv[1:]
    sys.argv = [f"maskfeat {command}", *arguments]
    from pipeline.train.command import leave

    run = import_module(f"pipeline.commands.{command}").main
    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    leave(run)


if __name__ == "__main__":
    # While modules are imported, Ctrl-C ends the process without a traceback
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.path = [folder for folder in sys.path if folder != str(HERE)]  # Python puts a script's own folder there
    load_packages()
    main(interruptible)
