"""Run jobs in parallel: in processes of this machine that end with their parent, or on a Ray cluster."""

import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, Protocol, TypeVar

from shards.files import ShardError

Job = TypeVar("Job")
Result = TypeVar("Result")


class Engine(Protocol):
    """A way to run jobs in parallel, such as `run` or, with its address bound, `run_on_ray`."""

    def __call__(
        self, function: Callable[[Job], Result], jobs: Sequence[Job], workers: int | None = None
    ) -> Iterator[Result]:
        """Yield `function(job)` for every job as it finishes, with this many workers, by default all that there are."""
        ...


_CONNECTING = 10.0  # seconds
_RETRIES = 5  # for a job whose node or process was lost


def available_cpus() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def run(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int | None = None) -> Iterator[Result]:
    """Yield `function(job)` for every job as it finishes; `workers`, by default one per core, are processes.

    One worker runs in this process. The first exception ends the run: jobs that have not begun are dropped. Raises
    BrokenProcessPool when a worker dies.
    """
    workers = available_cpus() if workers is None else workers
    if workers == 1:
        yield from map(function, jobs)
        return
    # Not fork, which would copy the locks of the calling program's threads. The fork server imports slow modules once
    # for all workers.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["shards.making.shard"])
    interruptible = signal.getsignal(signal.SIGINT) != signal.SIG_IGN
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(dict(os.environ), interruptible))
    try:
        for future in as_completed([pool.submit(function, job) for job in jobs]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def run_on_ray(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int | None = None, address: str | None = None
) -> Iterator[Result]:
    """Run jobs as `run` does, each as a Ray task of one core; retry the jobs of a lost node or process a few times.

    Args:
        function: importable on every node, as are the jobs' types.
        jobs: the files that they name must be reachable on every node.
        workers: the most jobs in progress, by default two per core of the cluster, so that no core is idle.
        address: address of the cluster, see `ray.init`; by default $RAY_ADDRESS, else a cluster of this machine alone.

    Raises:
        ShardError: Ray is missing, or there is no cluster at `address`.
        BrokenProcessPool: the nodes or processes of a job were lost repeatedly.
    """
    try:
        import ray
    except ImportError:
        raise ShardError("the engine ray needs Ray: pip install 'maskfeat-pipeline[ray]'") from None
    connected_before = ray.is_initialized()
    if not connected_before:
        try:
            host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
            if colon:  # Ray itself would retry for minutes
                socket.create_connection((host, int(port)), _CONNECTING).close()
            ray.init(address, log_to_driver=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise ShardError(f"{address}: no Ray cluster can be used there ({error}); correct the address") from None
    under_way: set[Any] = set()
    try:
        task = ray.remote(max_retries=_RETRIES)(lambda job: function(job))  # Ray does not accept a partial
        waiting = iter(jobs)
        most = workers or 2 * int(ray.cluster_resources().get("CPU", 1))
        under_way.update(map(task.remote, islice(waiting, most)))
        while under_way:
            (finished,), _ = ray.wait(list(under_way))
            under_way.remove(finished)
            yield ray.get(finished)
            under_way.update(map(task.remote, islice(waiting, 1)))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise BrokenProcessPool(str(error)) from None
    finally:
        for unfinished in under_way:
            ray.cancel(unfinished)
        if not connected_before:
            ray.shutdown()


def _start(environment: dict[str, str], interruptible: bool) -> None:
    os.environ.update(environment)  # for instance credentials: the fork server has those of its own start
    signal.signal(signal.SIGINT, signal.SIG_DFL if interruptible else signal.SIG_IGN)  # only the parent reports it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker with its parent; otherwise it would keep writing beside the workers of a re-run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
