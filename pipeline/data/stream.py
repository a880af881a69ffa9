"""Stream training batches from tars without an index, as webdataset opens them.

This is weaker than a data set with a manifest: an epoch is a number of samples, not every sample once; a resumed run
sees other samples than an undisturbed one; pixels depend on the number of ranks. `maskfeat-shards index` makes a data
set of the same tars without rewriting them.

Each rank repeats its tars without end, so that no rank waits for another at an uneven end.
"""

import io
import logging
import os
import queue
import random
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count, islice
from typing import Any

import numpy as np
from braceexpand import braceexpand
from webdataset.filters import shuffle

from pipeline.data.augment import sample_keys
from pipeline.data.batch import Batch, Batcher
from pipeline.data.decode.headers import shown_size
from pipeline.data.errors import DataError
from pipeline.data.pipe import Pipe
from pipeline.data.reader import TIMEOUT, Sample
from pipeline.data.request import Medium, Request, Shapes, training_request
from pipeline.data.settings import Data
from pipeline.data.tarstream import images_in
from pipeline.data.training_data import Part
from pipeline.random import mix_int
from shards.media.image import IMAGE
from shards.media.media import DEFAULT_MAX_PIXELS
from shards.secrets import PIPE, masked
from shards.storage import opened
from shards.terminal import shown

_BUFFERED = 8 * 2**20  # bytes of a tar per request
_PAUSE = 10.0  # seconds before tars without a sample are tried again
_QUEUED = 64  # samples read ahead of the shuffle buffer

Sized = tuple[bytes, int, int]  # an encoded image, its height and width
Arriving = queue.Queue[tuple[int, Sized | None]]  # the worker, and its image

_log = logging.getLogger(__name__)


class StreamData:
    """One rank's batches. The arguments are those of `ExactData`.

    Raises:
        DataError: the URLs cannot be expanded to any tar, or the GPU cannot decode.
    """

    def __init__(self, data: Data, part: Part) -> None:
        self._data, self._seed = data, part.seed
        self._micro_batch, self._batch_size = part.micro_batch, part.batch_size
        self._rank, self._world_size = part.rank, part.world_size
        assert data.stream_samples and data.shards is not None
        self.samples, self.media = data.stream_samples, frozenset({"image"})
        self.identity: dict[str, Any] = {"data.shards (URLs)": masked(data.shards)}
        tars = _expanded(data.shards)
        if not tars:
            raise DataError("data.shards names no tars: give paths or URLs, with {000..099} for several")
        shared = len(tars) < part.world_size
        self._tars = tars if shared else tars[part.rank :: part.world_size]
        self.notes = [
            f"streaming {len(tars)} tars without an index: epochs are not exact, and a resumed run does not see the "
            "samples that an undisturbed one would; `maskfeat-shards index` makes them a data set with both",
        ]
        if shared:
            self.notes.append(
                f"fewer tars than the {part.world_size} ranks: each rank reads all of them, in its own order"
            )
        self._batcher = Batcher(data, part.micro_batch, part.device, "find them with `maskfeat-shards index`")
        self.notes += self._batcher.notes
        self._counters, self._counting = {"tars": 0, "tar_errors": 0, "skipped_samples": 0}, threading.Lock()
        self._last_error, self._warned = "", set[str]()

    def batches(self, first_step: int, micro_batches: int, medium: Medium | None = None) -> Iterator[Batch]:
        """Yield this many of the rank's micro-batches, all of images, numbered from the first of a step on.

        Raises:
            DataError: the tars time out, none of them has an image, or too many images are bad.
        """
        return self._batcher.batches(islice(self._requests(first_step), micro_batches))

    def counters(self) -> dict[str, float]:
        """Return the tars opened and failed, and samples without a usable image, so far in this process."""
        return dict(self._counters)

    def close(self) -> None:
        """Stop the decoding threads."""
        self._batcher.close()

    def counts(self, samples: Sequence[int]) -> dict[str, int]:
        """Return nothing: there is no mixture."""
        return {}

    def names(self, samples: Sequence[int]) -> list[dict[str, str]]:
        """Return nothing: streamed samples do not have numbers to look up."""
        return [{} for _ in samples]

    def _requests(self, first_step: int) -> Iterator[tuple[Request, list[Sample]]]:
        buffer = self._data.stream_buffer
        generator = random.Random(mix_int(mix_int(self._seed + first_step) + self._rank))
        images = shuffle(buffer, initial=buffer // 4, rng=generator)(self._images(generator))
        share = self._batch_size // self._world_size
        for step in count(first_step):
            first = step * self._batch_size + self._rank * share
            for start in range(first, first + share, self._micro_batch):
                ids = np.arange(start, start + self._micro_batch, dtype=np.int64)
                encoded, heights, widths = zip(*islice(images, self._micro_batch), strict=True)
                keys = sample_keys(self._seed, np.zeros_like(ids), ids)
                sizes = np.array([heights, widths], dtype=np.int32)
                request = training_request(step, ids, keys, Shapes(sizes[0], sizes[1]), self._data)
                yield request, [np.frombuffer(image, np.uint8) for image in encoded]

    def _images(self, generator: random.Random) -> Iterator[Sized]:
        """Yield the workers' images as they arrive; the workers end with this generator."""
        workers = min(self._data.read_threads, len(self._tars))
        arriving: Arriving = queue.Queue(_QUEUED)
        ended = threading.Event()
        for worker in range(workers):
            arguments = (worker, self._tars[worker::workers], random.Random(generator.random()), arriving, ended)
            threading.Thread(target=self._work, args=arguments, daemon=True, name=f"stream-{worker}").start()
        empty = set()  # workers whose tars gave no image in the last round
        try:
            while True:
                try:
                    worker, image = arriving.get(timeout=TIMEOUT)
                except queue.Empty:
                    raise DataError(f"no image came for {TIMEOUT} s: the storage of the tars hangs") from None
                if image is not None:
                    empty.discard(worker)
                    yield image
                    continue
                empty.add(worker)
                if len(empty) == workers:
                    known = ", ".join(sorted(IMAGE.kept))
                    raise DataError(
                        f"no tar gave an image: {self._counters['tar_errors']} could not be read, "
                        f"{self._counters['skipped_samples']} samples did not have exactly one image ({known}); "
                        f"the last error: {self._last_error or 'none'}"
                    )
        finally:
            ended.set()

    def _work(
        self, worker: int, tars: list[str], generator: random.Random, arriving: Arriving, ended: threading.Event
    ) -> None:
        """Deliver the images of tars round after round, each in another order; None after a round without any."""

        def deliver(image: Sized | None) -> None:
            while not ended.is_set():
                with suppress(queue.Full):
                    arriving.put((worker, image), timeout=1)
                    return

        while not ended.is_set():
            images = 0
            for image in self._images_of(generator.sample(tars, len(tars))):
                images += 1
                deliver(image)
                if ended.is_set():
                    return
            if not images:
                deliver(None)
                ended.wait(_PAUSE)

    def _images_of(self, tars: list[str]) -> Iterator[Sized]:
        for tar in tars:
            self._count("tars")
            stream = None
            with self._left_out_if_it_fails(tar):
                stream = _open(tar, self._data.deadline)
                for image in images_in(stream):
                    size = _size(image) if image else None
                    if image and size:
                        yield image, *size
                    else:
                        self._count("skipped_samples")
            if stream is not None:
                with self._left_out_if_it_fails(tar):  # the command of a pipe may have failed
                    stream.close()

    @contextmanager
    def _left_out_if_it_fails(self, tar: str) -> Iterator[None]:
        """Skip a tar where it cannot be read, or not to its end; continue with the others."""
        try:
            yield
        except Exception as error:
            self._count("tar_errors")
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            self._last_error = shown(f"{tar}: {text}")
            if self._last_error not in self._warned:  # only once, not in every round
                self._warned.add(self._last_error)
                _log.warning("tar skipped: %s", self._last_error)

    def _count(self, name: str) -> None:
        with self._counting:
            self._counters[name] += 1


def _expanded(urls: str) -> list[str]:
    """Expand URLs to tars as webdataset would; without a variable WDS_NAME, `${NAME}` is left to a command.

    Raises:
        DataError: braces do not match, or a variable is missing.
    """
    try:
        return [tar for part in urls.split("::") for tar in braceexpand(_substituted(part)) if tar]
    except ValueError:
        raise DataError(f"data.shards={shown(urls)}: its braces do not match; correct them") from None


def _substituted(urls: str) -> str:
    def value(found: re.Match[str]) -> str:
        name = f"WDS_{found[1]}"
        if name not in os.environ and not urls.startswith(PIPE):
            raise DataError(f"data.shards={shown(urls)}: {found[0]} is not defined; set the variable {name}")
        return os.environ.get(name, found[0])

    return re.sub(r"\$\{(\w+)\}", value, urls)


def _open(tar: str, deadline: float) -> io.BufferedIOBase:
    if tar.startswith(PIPE):
        return Pipe(tar, deadline)
    # webdataset opens URLs by other programs, without retries
    return io.BufferedReader(opened(tar, deadline=deadline), _BUFFERED)


def _size(image: bytes) -> tuple[int, int] | None:
    """Return the displayed height and width of an encoded image, or None where they cannot be read."""
    try:
        height, width = shown_size(image)
    except Exception:  # Pillow raises nearly every type on damaged input
        return None
    return (height, width) if width * height <= DEFAULT_MAX_PIXELS else None
