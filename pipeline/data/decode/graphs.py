"""DALI graphs that make crops of encoded images; without torch, so that the process of `selftest` starts fast."""

import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.pipeline import pipeline_def
from PIL import Image

from pipeline.data.augment import Boxes


@dataclass(frozen=True)
class Crops:
    """Encoded images, n of uint8 (bytes,), and the crops to make of them; None is an image that could not be read.

    `boxes`, int32 (n, 4), are top, left, height and width in pixels; `flips`, int32 (n,), are 1 to mirror.
    """

    encoded: list[NDArray[np.uint8] | None]
    boxes: Boxes
    flips: NDArray[np.int32]

    def one_by_one(self) -> Iterator["Crops"]:
        """Yield each image alone, in order."""
        for place in range(len(self.encoded)):
            here = slice(place, place + 1)
            yield Crops(self.encoded[here], self.boxes[here], self.flips[here])


@dataclass(frozen=True)
class Decoding:
    """Options of a graph's decoder. They do not change the pixels of a crop, but for `fancy` those of its chroma.

    Attributes:
        regions: decode no more of an image than its crop; else decode all of it, then cut the crop out.
        hardware: share of each batch for the GPU's JPEG hardware, 0 or 1.
        fancy: on a GPU, interpolate chroma, as the CPU always does, instead of repeating it.
    """

    regions: bool = True
    hardware: int = 0
    fancy: bool = False


def _black_jpeg(height: int, width: int) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "JPEG")
    return np.frombuffer(file.getvalue(), dtype=np.uint8)


_BLACK_SIZE = (16, 16)
_BLACK = _black_jpeg(*_BLACK_SIZE)


class Graph:
    """A queue of batches within DALI. One thread may feed it while another takes from it.

    Args:
        batch_size: the most images in a batch.
        threads: CPU threads.
        device_id: CUDA device, None for the CPU.
        decoding: how it decodes.
        size: side of the square that crops are resized to, in pixels, before they are flipped; None: they stay as they
            are cut out.
    """

    def __init__(
        self,
        batch_size: int,
        threads: int,
        device_id: int | None,
        decoding: Decoding = Decoding(),
        size: int | None = None,
    ) -> None:
        self._flips = size is not None
        self._pipeline = _crops(
            "cpu" if device_id is None else "mixed",
            decoding,
            size,
            batch_size=batch_size,
            num_threads=threads,
            device_id=device_id,
            prefetch_queue_depth=1,  # so that every `schedule_run` is one run, the first one too
            exec_dynamic=True,  # outputs own their memory: torch may keep them without a copy
        )
        self._pipeline.build()
        self._lock = (
            threading.Lock()
        )  # DALI takes inputs from any thread; of starting and ending runs it does not say so

    def feed(self, crops: Crops) -> None:
        """Queue a batch, whose bytes are copied. In the place of an image that could not be read comes a black one."""
        missing = np.array([encoded is None for encoded in crops.encoded])
        boxes = np.where(missing[:, None], np.array([0, 0, *_BLACK_SIZE], np.int32), crops.boxes)
        feed = self._pipeline.feed_input
        feed("encoded", [_BLACK if encoded is None else encoded for encoded in crops.encoded])
        feed("anchor", np.ascontiguousarray(boxes[:, :2]))
        feed("shape", np.ascontiguousarray(boxes[:, 2:]))
        if self._flips:
            feed("flip", crops.flips)
        with self._lock:
            self._pipeline.schedule_run()

    def take(self, stream: Any = None) -> Any:
        """Return the crops of the oldest batch, a TensorList of uint8 (height, width, 3).

        Args:
            stream: CUDA stream that waits for them; None: the caller does.

        Raises:
            RuntimeError: one of them cannot be decoded. The batch is lost; those after it are not.
        """
        with self._lock:
            (images,) = self._pipeline.outputs(cuda_stream=stream)
        return images


def cause(error: RuntimeError) -> str:
    """Extract the line of a DALI error that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    after = lines.index("encountered:") + 1 if "encountered:" in lines else 0
    return lines[after] if after < len(lines) else str(error)


@pipeline_def  # type: ignore[untyped-decorator]
def _crops(device: str, decoding: Decoding, size: int | None) -> Any:
    encoded = fn.external_source(name="encoded", ndim=1, dtype=types.UINT8)
    anchor = fn.external_source(name="anchor", ndim=1, dtype=types.INT32)
    shape = fn.external_source(name="shape", ndim=1, dtype=types.INT32)
    options = {
        "device": device,
        "output_type": types.RGB,
        "hw_decoder_load": decoding.hardware,
        "jpeg_fancy_upsampling": decoding.fancy,
    }
    if decoding.regions:
        images = fn.decoders.image_slice(encoded, anchor, shape, axes=(0, 1), **options)
    else:
        images = fn.slice(fn.decoders.image(encoded, **options), anchor, shape, axes=(0, 1))
    if size is None:
        return images
    images = fn.resize(images, size=(size, size), interp_type=types.INTERP_CUBIC, antialias=True)
    return fn.flip(images, horizontal=fn.external_source(name="flip", ndim=0, dtype=types.INT32))
