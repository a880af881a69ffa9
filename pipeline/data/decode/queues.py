"""The common parts of decoders: their interface, the queue of a DALI graph, the resize on a CPU, and their end."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import record_function
from torch.utils.dlpack import from_dlpack

from pipeline.data.decode.graphs import Crops, Graph, Nodes, cause
from pipeline.data.errors import DataError

TIMEOUT = 600  # seconds that a batch may take on a CPU

_OPAQUE = ("Failed to decode sample #", "nvImageCodec failure: ")  # prefixes of DALI's messages
_ENDING = 10.0  # seconds for the work in progress when a decoder is closed


@dataclass(frozen=True)
class Decoded:
    """The inputs of a batch, and the errors of images or videos that could not be decoded, by place.

    `images` is uint8 (n, 3, H, W), for clips (n, 3, T, H, W), on the device, black where an image is bad.
    In memory, channels come last on a GPU and first on a CPU, as the resize leaves them, which saves a copy.
    """

    images: Tensor
    problems: dict[int, str]


class Decoder(Protocol):
    """A queue of batches: `feed` a few, then take one and feed the next."""

    def feed(self, crops: Crops) -> None:
        """Queue a batch."""
        ...

    def take(self) -> Decoded:
        """Return the oldest batch. Raises DataError where decoding fails for more than single samples."""
        ...

    def close(self) -> None:
        """Stop the threads; batches that were not taken are lost."""
        ...


class GraphDecoder:
    """A queue of batches on a CUDA device: `feed` a few, then take one and feed the next.

    Its own thread feeds DALI, which copies every encoded image or video.

    Args:
        batch_size: the most images or videos per batch.
        shape: the shape of an output without the batch; channels come last.
        device: CUDA device; for tests a CPU, which runs the same graph.
        threads: CPU threads, which parse the files and feed the device.
        nodes: the computation of the graph.
        check: removes inputs that must not reach DALI from a batch, and returns the reasons by place.
    """

    def __init__(
        self,
        batch_size: int,
        shape: tuple[int, ...],
        device: torch.device,
        threads: int,
        nodes: Nodes,
        check: Callable[[Crops], tuple[Crops, dict[int, str]]] = lambda crops: (crops, {}),
    ) -> None:
        self._check = check
        self._device, self._shape, self._threads, self._nodes = device, shape, threads, nodes
        self._graph = self._build(batch_size)
        self._alone: Graph | None = None  # for one image or video, built for the first bad one
        self._feeding = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._fed: deque[Future[tuple[Crops, dict[int, str]]]] = deque()

    def feed(self, crops: Crops) -> None:
        """Queue a batch."""
        self._fed.append(self._feeding.submit(self._feed, crops))

    def take(self) -> Decoded:
        """Return the oldest batch; the CUDA stream waits for it, the caller only for the CPU's part.

        It is copied only where inputs are missing, or where there are several inputs per image or video.
        """
        crops, problems = self._fed.popleft().result()
        readable = crops.readable
        if not readable:
            return Decoded(_inputs(self._black(crops)), problems)
        try:
            images = self._taken(self._graph)
        except RuntimeError:  # DALI drops the whole batch and continues with the next
            return self._rescued(crops, problems)
        if len(readable) < len(crops.encoded):
            images, taken = self._black(crops), images
            images[readable] = taken
        return Decoded(_inputs(images), problems)

    def close(self) -> None:
        """Stop the thread; batches that were not taken are lost."""
        end(self._feeding, self._fed)

    @record_function("feed")
    def _feed(self, crops: Crops) -> tuple[Crops, dict[int, str]]:
        crops, problems = self._check(crops)
        if readable := crops.readable:
            self._graph.feed(crops.of(readable))
        return crops, problems

    def _taken(self, graph: Graph) -> Tensor:
        """Return the oldest batch of a graph, (images, repeats, *shape)."""
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        repeats = [from_dlpack(output.as_tensor()) for output in graph.take(stream)]
        return repeats[0][:, None] if len(repeats) == 1 else torch.stack(repeats, 1)

    def _rescued(self, crops: Crops, problems: dict[int, str]) -> Decoded:
        self._alone = self._alone or self._build(1)
        images = self._black(crops)
        for place in crops.readable:
            self._alone.feed(crops.of([place]))
            try:
                images[place] = self._taken(self._alone)[0]
            except RuntimeError as error:
                problems[place] = problem(error)
        return Decoded(_inputs(images), problems)

    def _black(self, crops: Crops) -> Tensor:
        shape = (len(crops.encoded), crops.repeats, *self._shape)
        return torch.zeros(shape, dtype=torch.uint8, device=self._device)

    def _build(self, batch_size: int) -> Graph:
        return Graph(batch_size, self._threads, self._device.index, self._nodes)


def resize_into(image: NDArray[np.uint8], crop: Tensor, flip: bool) -> None:
    """Resize a crop, uint8 (height, width, 3), with antialiasing into `image`, uint8 (3, H, W)."""
    size = image.shape[1:]
    resized = F.interpolate(crop.permute(2, 0, 1)[None], size, mode="bicubic", antialias=True)[0].numpy()
    image[:] = resized[..., ::-1] if flip else resized


def hanging() -> DataError:
    """Return the error of a batch that took too long."""
    return DataError(f"decoding a batch took more than {TIMEOUT} s; start again")


def end(threads: ThreadPoolExecutor, work: Iterable[Future[Any]]) -> None:
    """Stop threads without starting the rest of their work; wait for work in progress, unless it hangs."""
    threads.shutdown(wait=False, cancel_futures=True)
    wait_for([future for future in work if not future.cancelled()], _ENDING)


def _inputs(images: Tensor) -> Tensor:
    """View (images, repeats, ..., 3) as inputs of the model, (n, 3, ...), without a copy."""
    return images.flatten(0, 1).movedim(-1, 1)


def problem(error: RuntimeError) -> str:
    """Describe a DALI error, unless it only gives a number or a place in the batch."""
    line = cause(error)
    return "cannot be decoded" if line.startswith(_OPAQUE) else line
