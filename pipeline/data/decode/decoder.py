"""Encoded images -> crops of one size on the device, by NVIDIA DALI.

All randomness comes in as numbers (boxes and flips), so a crop's pixels do not depend on its batch, on the order of
the batches or on threads. On a GPU one DALI graph decodes, crops, resizes and flips. Its hybrid JPEG decoder shares a
batch between the hardware unit and CUDA by position in the batch, and the two differ in low bits: `hw_decoder_load`
of only 0 or 1 keeps that promise. On a CPU, DALI decodes the crop and torch resizes it, whose vectorised resize takes a
fraction of the time of DALI's (docs/benchmarks.md).

Both resize by the cubic filter (a = -0.5) widened against aliasing, as Pillow does. Both leave all that takes time to
other threads: whoever trains hands a batch over, and waits only for one that is not ready.
"""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function
from torch.utils.dlpack import from_dlpack

from pipeline.data.decode.gpu import Choice, Outcome, choose, examine, remembered, selftest
from pipeline.data.decode.graphs import Crops as Crops
from pipeline.data.decode.graphs import Decoding, Graph, cause
from pipeline.data.decode.libraries import driver_version, library_versions
from pipeline.data.errors import DataError

_OPAQUE = ("Failed to decode sample #", "nvImageCodec failure: ")  # beginnings of DALI's messages
_ENDING = 10.0  # seconds that the work under way may take when a decoder is closed


@dataclass(frozen=True)
class Decoded:
    """Crops of a batch, and what was wrong with those that could not be decoded, by their place in it.

    `images` is uint8 (n, 3, size, size) on the device, black where there is no image; channels come last in memory on
    a GPU, first on a CPU: as they leave the resize, without another copy.
    """

    images: Tensor
    problems: dict[int, str]


class Decoder(Protocol):
    """A queue of batches: `feed` a few of them, then take one and feed the next."""

    def feed(self, crops: Crops) -> None:
        """Queue a batch."""
        ...

    def take(self) -> Decoded:
        """Return the oldest batch. Raises DataError where decoding fails for more than single samples."""
        ...

    def close(self) -> None:
        """End the threads; batches that were not taken are lost."""
        ...


class GpuDecoder:
    """A queue of batches on a CUDA device: `feed` a few of them, then take one and feed the next.

    A thread of its own feeds DALI, which copies every encoded image.

    Args:
        batch_size: the most images in a batch.
        size: side of the square crops, in pixels.
        device: CUDA device; on a CPU, for tests, the same graph does the same.
        threads: CPU threads, which parse the images and feed the device.
        decoding: how the graph decodes.
    """

    def __init__(self, batch_size: int, size: int, device: torch.device, threads: int, decoding: Decoding) -> None:
        self._device, self._size, self._threads, self._decoding = device, size, threads, decoding
        self._graph = self._build(batch_size)
        self._alone: Graph | None = None  # for one image, built when the first bad one shows up
        self._feeding = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._fed: deque[tuple[Crops, Future[None]]] = deque()

    def feed(self, crops: Crops) -> None:
        """Queue a batch."""
        self._fed.append((crops, self._feeding.submit(self._feed, crops)))

    def take(self) -> Decoded:
        """Return the oldest batch, not copied; the CUDA stream waits for it, the caller for the CPU's part alone."""
        crops, fed = self._fed.popleft()
        fed.result()
        try:
            return Decoded(self._taken(self._graph).permute(0, 3, 1, 2), {})
        except RuntimeError:  # DALI drops the whole batch and goes on with the next
            return self._rescued(crops)

    def close(self) -> None:
        """End the thread; batches that were not taken are lost."""
        _end(self._feeding, [fed for _, fed in self._fed])

    @record_function("feed")
    def _feed(self, crops: Crops) -> None:
        self._graph.feed(crops)

    def _taken(self, graph: Graph) -> Tensor:
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        return from_dlpack(graph.take(stream).as_tensor())

    def _rescued(self, crops: Crops) -> Decoded:
        self._alone = self._alone or self._build(1)
        images = torch.zeros((len(crops.encoded), self._size, self._size, 3), dtype=torch.uint8, device=self._device)
        problems = {}
        for place, alone in enumerate(crops.one_by_one()):
            self._alone.feed(alone)
            try:
                images[place] = self._taken(self._alone)[0]
            except RuntimeError as error:
                problems[place] = _problem(error)
        return Decoded(images.permute(0, 3, 1, 2), problems)

    def _build(self, batch_size: int) -> Graph:
        return Graph(batch_size, self._threads, self._device.index, self._decoding, self._size)


class CpuDecoder:
    """The same on a CPU: a thread of its own decodes and resizes one batch after the other.

    Args:
        batch_size: the most images in a batch.
        size: side of the square crops, in pixels.
        threads: that decode, and then resize, a batch together.
    """

    TIMEOUT = 600  # seconds that a batch may take

    def __init__(self, batch_size: int, size: int, threads: int) -> None:
        self._size = size
        self._graph, self._alone = (Graph(most, threads, None) for most in (batch_size, 1))
        self._resizing = ThreadPoolExecutor(threads, thread_name_prefix="resize")
        self._decoding = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self._fed: deque[Future[Decoded]] = deque()

    def feed(self, crops: Crops) -> None:
        """Queue a batch."""
        self._fed.append(self._decoding.submit(self._decode, crops))

    def take(self) -> Decoded:
        """Return the oldest batch. Raises DataError when decoding hangs."""
        try:
            return self._fed.popleft().result(self.TIMEOUT)
        except TimeoutError:
            raise DataError(f"decoding a batch took more than {self.TIMEOUT} s; start again") from None

    def close(self) -> None:
        """End the threads; batches that were not taken are lost."""
        _end(self._decoding, self._fed)
        self._resizing.shutdown(wait=False)

    @record_function("decode")
    def _decode(self, crops: Crops) -> Decoded:
        # Copied by NumPy: torch would start a team of threads of its own in every one of ours
        images = np.zeros((len(crops.encoded), 3, self._size, self._size), dtype=np.uint8)
        problems: dict[int, str] = {}
        try:
            pieces = dict(enumerate(self._outputs(self._graph, crops)))
        except RuntimeError:  # DALI drops the whole batch and goes on with the next
            pieces = self._rescued(crops, problems)

        def finish(place: int) -> None:
            resized = _resized(pieces[place], self._size).numpy()
            images[place] = resized[..., ::-1] if crops.flips[place] else resized

        list(self._resizing.map(finish, pieces))
        return Decoded(torch.from_numpy(images), problems)

    def _rescued(self, crops: Crops, problems: dict[int, str]) -> dict[int, Tensor]:
        pieces = {}
        for place, alone in enumerate(crops.one_by_one()):
            try:
                (pieces[place],) = self._outputs(self._alone, alone)
            except RuntimeError as error:
                problems[place] = _problem(error)
        return pieces

    @staticmethod
    def _outputs(graph: Graph, crops: Crops) -> list[Tensor]:
        """The crops, uint8 (height, width, 3) each."""
        graph.feed(crops)
        images = graph.take()
        return [from_dlpack(images[place]) for place in range(len(crops.encoded))]


def decoder_for(device: torch.device, batch_size: int, size: int, threads: int, hw_decoder_load: int) -> Decoder:
    """Return the decoder of a device. Raises DataError for a GPU that cannot decode."""
    if device.type == "cuda":
        return GpuDecoder(batch_size, size, device, threads, chosen(device, hw_decoder_load).decoding)
    return CpuDecoder(batch_size, size, threads)


@lru_cache
def chosen(device: torch.device, hw_decoder_load: int) -> Choice:
    """Choose how a CUDA device decodes, by tests unless the node remembers them. Raises DataError if it cannot."""
    versions = library_versions()
    on_this_node = {"driver": driver_version(), "GPU": torch.cuda.get_device_name(device), "load": str(hw_decoder_load)}

    def test(decoding: Decoding) -> Outcome:
        return examine(selftest(str(device.index), decoding))

    return remembered(versions | on_this_node, lambda: choose(test, versions, hw_decoder_load))


def _resized(image: Tensor, size: int) -> Tensor:
    """uint8 (height, width, 3) -> uint8 (3, size, size), without aliasing."""
    pixels = image.permute(2, 0, 1)[None]
    return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True)[0]


def _end(threads: ThreadPoolExecutor, work: Iterable[Future[Any]]) -> None:
    """End threads without starting what is left of their work; wait for what is under way, unless it hangs."""
    threads.shutdown(wait=False, cancel_futures=True)
    wait_for([future for future in work if not future.cancelled()], _ENDING)


def _problem(error: RuntimeError) -> str:
    """Say what happened, where a DALI error says more of it than a number or a place in the batch."""
    line = cause(error)
    return "cannot be decoded" if line.startswith(_OPAQUE) else line
