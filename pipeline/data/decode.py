"""Encoded images -> crops of one size on the device, by NVIDIA DALI.

All randomness comes in as numbers (boxes and flips), so a crop's pixels do not depend on its batch, on the order of
the batches or on threads. On a GPU one DALI graph decodes, crops, resizes and flips. Its hybrid JPEG decoder shares a
batch between the hardware unit and CUDA by position in the batch, and the two differ in low bits: `hw_decoder_load`
of only 0 or 1 keeps that promise. On a CPU, DALI decodes the crop and torch resizes it, whose vectorised resize takes a
fraction of the time of DALI's (docs/benchmarks.md).

Both resize by the cubic filter (a = -0.5) widened against aliasing, as Pillow does.
"""

import io
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.pipeline import pipeline_def
from PIL import Image
from torch import Tensor
from torch.profiler import record_function
from torch.utils.dlpack import from_dlpack

from pipeline.data.augment import Boxes
from pipeline.data.errors import DataError
from pipeline.data.reader import Encoded


@dataclass(frozen=True)
class Crops:
    """What to make of n encoded images, uint8 (bytes,) each; None stands for one that could not be read.

    `boxes`, int32 (n, 4), are top, left, height and width in pixels; `flips`, int32 (n,), are 1 to mirror.
    """

    encoded: list[Encoded | None]
    boxes: Boxes
    flips: NDArray[np.int32]


@dataclass(frozen=True)
class Decoded:
    """Crops of a batch, and what was wrong with those that could not be decoded, by their place in it.

    `images` is uint8 (n, 3, size, size) on the device, black where there is no image; channels come last in memory on
    a GPU, first on a CPU: as they leave the resize, without another copy.
    """

    images: Tensor
    problems: dict[int, str]


def _black_jpeg(height: int, width: int) -> Encoded:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "JPEG")
    return np.frombuffer(file.getvalue(), dtype=np.uint8)


_BLACK_SIZE = (16, 16)
_BLACK = _black_jpeg(*_BLACK_SIZE)

_OPAQUE = ("Failed to decode sample #", "nvImageCodec failure: ")  # beginnings of DALI's messages

_ONE_RUN_AT_A_TIME = {
    "prefetch_queue_depth": 1,  # so that every `schedule_run` is one run, the first one too
    "exec_dynamic": True,  # outputs own their memory: torch may keep them without a copy
}


@pipeline_def  # type: ignore[untyped-decorator]
def _gpu_graph(size: int, hw_decoder_load: float) -> Any:
    images = _decoded("mixed", hw_decoder_load)
    images = fn.resize(images, size=(size, size), interp_type=types.INTERP_CUBIC, antialias=True)
    return fn.flip(images, horizontal=fn.external_source(name="flip", ndim=0, dtype=types.INT32))


@pipeline_def  # type: ignore[untyped-decorator]
def _cpu_graph() -> Any:
    return _decoded("cpu", 0)


def _decoded(device: str, hw_decoder_load: float) -> Any:
    encoded = fn.external_source(name="encoded", ndim=1, dtype=types.UINT8)
    anchor = fn.external_source(name="anchor", ndim=1, dtype=types.INT32)
    shape = fn.external_source(name="shape", ndim=1, dtype=types.INT32)
    return fn.decoders.image_slice(
        encoded, anchor, shape, axes=(0, 1), device=device, output_type=types.RGB, hw_decoder_load=hw_decoder_load
    )


class GpuDecoder:
    """A queue of batches on a CUDA device: `feed` a few of them, then take one and feed the next.

    Args:
        batch_size: the most images in a batch.
        size: side of the square crops, in pixels.
        device_id: CUDA device.
        threads: CPU threads, which parse the images and feed the device.
        hw_decoder_load: share of each batch for the GPU's JPEG hardware, 0 or 1.
    """

    def __init__(self, batch_size: int, size: int, device_id: int, threads: int, hw_decoder_load: float) -> None:
        self._device = torch.device("cuda", device_id)
        self._size, self._threads, self._hw_decoder_load = size, threads, hw_decoder_load
        self._graph = self._build(batch_size)
        self._alone: Any = None  # a graph for one image, built when the first bad one shows up
        self._fed: deque[Crops] = deque()

    def feed(self, crops: Crops) -> None:
        """Queue a batch."""
        self._start(self._graph, crops)
        self._fed.append(crops)

    def take(self) -> Decoded:
        """The oldest batch, not copied; the current CUDA stream waits for it, the caller does not."""
        crops = self._fed.popleft()
        try:
            return Decoded(self._outputs(self._graph).permute(0, 3, 1, 2), {})
        except RuntimeError:  # DALI drops the whole batch and goes on with the next
            return self._one_by_one(crops)

    def _one_by_one(self, crops: Crops) -> Decoded:
        self._alone = self._alone or self._build(1)
        images = torch.zeros((len(crops.encoded), self._size, self._size, 3), dtype=torch.uint8, device=self._device)
        problems = {}
        for place in range(len(images)):
            self._start(self._alone, _only(crops, place))
            try:
                images[place] = self._outputs(self._alone)[0]
            except RuntimeError as error:
                problems[place] = _cause(error)
        return Decoded(images.permute(0, 3, 1, 2), problems)

    @staticmethod
    def _start(graph: Any, crops: Crops) -> None:
        _feed(graph, crops)
        graph.feed_input("flip", crops.flips)
        graph.schedule_run()

    def _outputs(self, graph: Any) -> Tensor:
        (images,) = graph.outputs(cuda_stream=torch.cuda.current_stream(self._device))
        return from_dlpack(images.as_tensor())

    def _build(self, batch_size: int) -> Any:
        graph = _gpu_graph(
            self._size,
            self._hw_decoder_load,
            batch_size=batch_size,
            num_threads=self._threads,
            device_id=self._device.index,
            **_ONE_RUN_AT_A_TIME,
        )
        graph.build()
        return graph


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
        self._graph, self._alone = (
            _cpu_graph(batch_size=most, num_threads=threads, device_id=None, **_ONE_RUN_AT_A_TIME)
            for most in (batch_size, 1)
        )
        self._graph.build()
        self._alone.build()
        self._resizing = ThreadPoolExecutor(threads, thread_name_prefix="resize")
        self._decoding = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self._fed: deque[Future[Decoded]] = deque()

    def feed(self, crops: Crops) -> None:
        """Queue a batch."""
        self._fed.append(self._decoding.submit(self._decode, crops))

    def take(self) -> Decoded:
        """The oldest batch. Raises DataError when decoding hangs."""
        try:
            return self._fed.popleft().result(self.TIMEOUT)
        except TimeoutError:
            raise DataError(f"decoding a batch took more than {self.TIMEOUT} s; start again") from None

    @record_function("decode")
    def _decode(self, crops: Crops) -> Decoded:
        # Copied by NumPy: torch would start a team of threads of its own in every one of ours
        images = np.zeros((len(crops.encoded), 3, self._size, self._size), dtype=np.uint8)
        problems: dict[int, str] = {}
        try:
            pieces = dict(enumerate(self._outputs(self._graph, crops)))
        except RuntimeError:  # DALI drops the whole batch and goes on with the next
            pieces = self._one_by_one(crops, problems)

        def finish(place: int) -> None:
            resized = _resized(pieces[place], self._size).numpy()
            images[place] = resized[..., ::-1] if crops.flips[place] else resized

        list(self._resizing.map(finish, pieces))
        return Decoded(torch.from_numpy(images), problems)

    def _one_by_one(self, crops: Crops, problems: dict[int, str]) -> dict[int, Tensor]:
        pieces = {}
        for place in range(len(crops.encoded)):
            try:
                (pieces[place],) = self._outputs(self._alone, _only(crops, place))
            except RuntimeError as error:
                problems[place] = _cause(error)
        return pieces

    @staticmethod
    def _outputs(graph: Any, crops: Crops) -> list[Tensor]:
        """The crops, uint8 (height, width, 3) each."""
        _feed(graph, crops)
        graph.schedule_run()
        (images,) = graph.outputs()
        return [from_dlpack(images[place]) for place in range(len(crops.encoded))]


def decoder_for(
    device: torch.device, batch_size: int, size: int, threads: int, hw_decoder_load: float
) -> GpuDecoder | CpuDecoder:
    """The decoder of a device."""
    if device.type == "cuda":
        return GpuDecoder(batch_size, size, device.index, threads, hw_decoder_load)
    return CpuDecoder(batch_size, size, threads)


def _resized(image: Tensor, size: int) -> Tensor:
    """uint8 (height, width, 3) -> uint8 (3, size, size), without aliasing."""
    pixels = image.permute(2, 0, 1)[None]
    return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True)[0]


def _feed(graph: Any, crops: Crops) -> None:
    """Hand a batch to a graph. In the place of an image that could not be read comes a black one."""
    missing = np.array([encoded is None for encoded in crops.encoded])
    boxes = np.where(missing[:, None], np.array([0, 0, *_BLACK_SIZE], np.int32), crops.boxes)
    graph.feed_input("encoded", [_BLACK if encoded is None else encoded for encoded in crops.encoded])
    graph.feed_input("anchor", np.ascontiguousarray(boxes[:, :2]))
    graph.feed_input("shape", np.ascontiguousarray(boxes[:, 2:]))


def _only(crops: Crops, place: int) -> Crops:
    here = slice(place, place + 1)
    return Crops(crops.encoded[here], crops.boxes[here], crops.flips[here])


def _cause(error: RuntimeError) -> str:
    """Extract the line of a DALI error that says what happened, unless that is a number or a place in the batch."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    after = lines.index("encountered:") + 1 if "encountered:" in lines else 0
    cause = lines[after] if after < len(lines) else str(error)
    return "cannot be decoded" if cause.startswith(_OPAQUE) else cause
