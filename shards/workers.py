"""Runs jobs over processes that end when their parent does."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def available_cpus() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def run(function: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[Result]:
    """Yields `function(job)` for every job as they finish; `workers=1` stays in this process.

    The first exception ends it: jobs not yet begun are dropped. Raises BrokenProcessPool when a worker dies.
    """
    if workers == 1:
        yield from map(function, jobs)
        return
    # Not fork, which copies the locks of the calling program's threads. The server that does the forking
    # imports the slow library once for all workers.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["webdataset"])
    pool = ProcessPoolExecutor(workers, context, initializer=_start)
    try:
        for future in as_completed([pool.submit(function, job) for job in jobs]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent reports a Ctrl-C, once
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot stop its workers, which would go on writing beside those of the re-run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
