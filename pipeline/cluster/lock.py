"""Allow one run at a time in a folder: two would remove each other's checkpoints."""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from pipeline.cluster.world import World
from pipeline.files import flock, tell
from pipeline.settings import ConfigError

_LONGEST = 300  # bytes of the description of a lock's holder
PATIENCE = 60  # seconds: ranks that were asked to stop may still be saving


def hold(folder: Path, world: World, patience: float) -> None:
    """Lock a run's folder for these ranks, until rank 0 ends. All ranks call this together.

    Where the file system does not have locks, or the disk fails, the run continues without.

    Args:
        patience: seconds to wait for another run's end.

    Raises:
        ConfigError: on all ranks alike, if another run still holds it then.
    """
    if problem := world.from_first("" if world.rank else _take(folder, patience)):
        raise ConfigError(problem)


def _take(folder: Path, patience: float) -> str:
    """Lock the folder. Return why that fails, or an empty string."""
    path, deadline, told = folder / ".lock", time.monotonic() + patience, False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while (lock := flock(path)) is None:
            holder = path.read_bytes()[:_LONGEST].decode(errors="replace").strip() or "another process"
            in_use = f"run.dir={folder} is in use by {holder}"
            if time.monotonic() >= deadline:
                return f"{in_use}: wait for it or end it"
            if not told:
                tell(f"note: {in_use}: waiting {patience:g} s for its end")
                told = True
            time.sleep(0.5)
    except OSError as error:
        tell(f"note: {path} cannot be locked ({error.strerror}): start nothing else on this run.dir")
        return ""
    # Never closed: a thread may save until the end of the process
    with suppress(OSError):  # a full disk
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return ""
