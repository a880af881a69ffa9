"""Make one request to a store, through fsspec, and retry it until it succeeds or a deadline has passed.

The pauses between attempts grow exponentially, with full jitter; all times are of the monotonic clock. Credentials
come only from the environment: the variables and files of the store's own tools, and ~/.netrc for HTTP. fsspec is
imported lazily, since local data does not need it. It supports protocols that run code or open other URLs, and the
URLs of data sets and tables are not trusted, so only those of `PROTOCOLS` are passed to it.
"""

import errno
import itertools
import random
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import responses
from pathlib import Path
from threading import Lock
from typing import Any

from shards.remote.urls import printable_url, protocol_of, why_refused

DEADLINE = 300.0  # seconds from the first attempt until a request is given up
_ATTEMPT = 30.0  # seconds for one attempt
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 20.0  # seconds; a pause is random, below a limit that doubles
_PASSING = (408, 425, 429)  # temporary HTTP statuses of the 4xx range
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, NotImplementedError)
_JITTER = random.SystemRandom()  # does not have a state that a user's seed or a fork could share

# The retries of the store's own client would be neither counted nor limited by the deadline.
_S3 = {"config_kwargs": {"retries": {"total_max_attempts": 1}, "max_pool_connections": 64}, "use_listings_cache": False}
# Proxies and ~/.netrc come from the environment, as for other programs; compression is off, so sizes are exact.
_WEB = {"client_kwargs": {"trust_env": True, "auto_decompress": False}}
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # of this package, by protocol


class StorageError(OSError):
    """A request failed for good. `filename` is the printable URL or the file, `strerror` says why."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"

    @property
    def transient(self) -> bool:
        """Return whether it was an outage (time-outs, resets, 5xx or 429 until the deadline), not a refusal."""
        return self.errno == errno.ETIMEDOUT


@dataclass
class Traffic:
    """Counters of the requests of one purpose in this process. Counting is thread-safe.

    `requests` counts attempts and `retries` those after a first; `failures` counts requests that were given up; `bytes`
    were received; `seconds` were spent in attempts, summed over threads.
    """

    requests: int = 0
    bytes: int = 0
    retries: int = 0
    failures: int = 0
    seconds: float = 0.0
    _lock: Lock = field(default_factory=Lock, init=False, repr=False, compare=False)

    def count(self, *, bytes: int = 0, seconds: float = 0.0, retry: bool = False, failure: bool = False) -> None:
        """Add one attempt."""
        with self._lock:
            self.requests += 1
            self.bytes += bytes
            self.retries += retry
            self.failures += failure
            self.seconds += seconds

    def snapshot(self) -> dict[str, float]:
        """Return all counters at one moment, by name."""
        with self._lock:
            return {name: value for name, value in vars(self).items() if name != "_lock"}


def locate(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, which fsspec caches, and the file's name in it.

    Raises StorageError for a URL that `why_refused` refuses, and for one that needs a package that is not installed.
    """
    why = why_refused(url)
    if why is not None:
        raise StorageError(errno.EINVAL, why, printable_url(url))
    protocol = protocol_of(url)
    url = protocol + url[len(protocol) :]  # in lower case
    try:
        if protocol in ("http", "https"):
            from shards.remote.web import Web

            return Web(**_WEB), url
        from fsspec.core import url_to_fs

        filesystem, path = url_to_fs(url, **_S3 if protocol in ("s3", "s3a") else {})
    except (ImportError, ValueError) as error:
        extra = _EXTRAS.get(protocol)
        what = f"needs pip install 'maskfeat-pipeline[{extra}]'" if extra else str(error)
        raise StorageError(errno.EINVAL, what, printable_url(url)) from None
    if protocol in ("s3", "s3a"):
        filesystem.retries = 1  # the option, for file systems that do not take it as an argument
    if protocol == "file":
        file = Path(path)
        if file.exists() and not (file.is_file() or file.is_dir()):  # a FIFO would block, and a device may never end
            raise StorageError(errno.EINVAL, "is not a regular file", printable_url(url))
    return filesystem, path


def request(
    url: str,
    method: str,
    traffic: Traffic | None,
    deadline: float,
    *before: str,
    extra: float = 0.0,
    **options: Any,
) -> Any:
    """Call a method of the URL's file system until it succeeds, with `before` and the file's name as arguments.

    An attempt is cancelled after 30 seconds, or a quarter of a shorter `deadline`. `extra` seconds are added to both.
    Raises StorageError: the request was refused, or had not succeeded within `deadline` seconds; the reason is that of
    the last attempt that had all of its time.
    """
    traffic = Traffic() if traffic is None else traffic
    begun = time.monotonic()
    end, longest, what = begun + deadline + extra, extra + min(_ATTEMPT, deadline / 4), ""
    for attempt in itertools.count():
        now = time.monotonic()
        limit = min(longest, end - now)
        try:
            filesystem, path = locate(url)
            answer = _call(filesystem, method, limit, *before, path, **options)
        except StorageError:
            traffic.count(seconds=time.monotonic() - now, retry=attempt > 0, failure=True)
            raise
        except Exception as error:  # every protocol has its own errors, few of which are OSErrors
            number, found = _diagnosis(error)
            if number != errno.ETIMEDOUT or limit == longest or not what:
                what = found
            pause = _JITTER.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt))
            ended = time.monotonic()
            failure = number != errno.ETIMEDOUT or ended + pause >= end
            traffic.count(seconds=ended - now, retry=attempt > 0, failure=failure)
            if failure:
                if number == errno.ETIMEDOUT:
                    what += f"; tried for {deadline:g} s"
                # Without the cause, whose message may show the query string of a signed URL in a traceback.
                raise StorageError(number, what, printable_url(url)) from None
            time.sleep(pause)
        else:
            received = len(answer) if isinstance(answer, bytes) else 0
            traffic.count(bytes=received, seconds=time.monotonic() - now, retry=attempt > 0)
            return answer
    raise AssertionError("the last attempt returns or raises")


def _call(filesystem: Any, method: str, limit: float, *arguments: str, **options: Any) -> Any:
    """Make one attempt; with asyncio, cancel it after `limit` seconds, which closes its connection."""
    from fsspec.asyn import sync

    if filesystem.async_impl:
        return sync(filesystem.loop, getattr(filesystem, f"_{method}"), *arguments, timeout=limit, **options)
    return getattr(filesystem, method)(*arguments, **options)


def _diagnosis(error: BaseException) -> tuple[int, str]:
    """Return ETIMEDOUT for a temporary error, ENOENT for a missing file, EIO for a refusal; and a description."""
    outermost = error
    # File systems do not always translate errors well; but the cause of a time-out is only what it cancelled.
    while error.__cause__ is not None and not isinstance(error, TimeoutError):
        error = error.__cause__
    response = getattr(error, "response", None)  # botocore's
    status = response["ResponseMetadata"]["HTTPStatusCode"] if isinstance(response, dict) else None
    if status is None:
        status = getattr(error, "status", None)  # aiohttp's
    if status is None:
        status = getattr(outermost, "code", None)  # gcsfs's; a deeper one is aiohttp's, for a truncated body
    if isinstance(status, int) and status:  # aiohttp gives 0 for circular redirects
        what = f"{status} {responses.get(status, '')}".strip()
        if status == HTTPStatus.NOT_FOUND:
            return errno.ENOENT, what
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return errno.ERANGE, what
        return errno.ETIMEDOUT if status >= 500 or status in _PASSING else errno.EIO, what
    if isinstance(error, FileNotFoundError):
        return errno.ENOENT, "not found"
    if isinstance(error, TimeoutError):
        return errno.ETIMEDOUT, "timed out"
    if "Redirect" in type(error).__name__:  # aiohttp's
        return errno.EIO, "its server redirects in circles, or away from the web; use one that does not"
    what = printable_url(f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": "))
    final = isinstance(error, _FINAL) or "Credentials" in type(error).__name__  # botocore's, Google's
    return errno.EIO if final else errno.ETIMEDOUT, what
