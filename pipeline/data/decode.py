"""Encoded images -> crops of one size on the device, by NVIDIA DALI. The same graph on a CPU and on a GPU.

All randomness comes in as numbers (boxes and flips), so a crop's pixels do not depend on its batch, on the order
of the batches or on threads. On a GPU the JPEG decoder is hybrid; `hw_decoder_load` shares a batch between the
hardware unit and CUDA by position in the batch, and the two differ in low bits: only 0 or 1 keep that promise.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.pipeline import pipeline_def
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pipeline.data.augment import Boxes
from pipeline.data.reader import DataError, Encoded


@pipeline_def  # type: ignore[untyped-decorator]
def _graph(size: int, device: str, hw_decoder_load: float) -> Any:
    encoded = fn.external_source(name="encoded", ndim=1, dtype=types.UINT8)
    anchor = fn.external_source(name="anchor", ndim=1, dtype=types.INT32)
    shape = fn.external_source(name="shape", ndim=1, dtype=types.INT32)
    flip = fn.external_source(name="flip", ndim=0, dtype=types.INT32)
    images = fn.decoders.image_slice(
        encoded, anchor, shape, axes=(0, 1), device=device, output_type=types.RGB, hw_decoder_load=hw_decoder_load
    )
    images = fn.resize(images, size=(size, size), interp_type=types.INTERP_CUBIC, antialias=True)
    return fn.flip(images, horizontal=flip)


class Decoder:
    """A queue of batches: `feed` up to `depth` of them, then take one and feed the next.

    Args:
        batch_size: the most images in a batch.
        size: side of the square crops, in pixels.
        device_id: CUDA device, or None to decode on the CPU.
        threads: CPU threads.
        depth: how many batches the caller means to have under way.
        hw_decoder_load: share of each batch for the GPU's JPEG hardware, 0 or 1.
    """

    def __init__(
        self,
        batch_size: int,
        size: int,
        device_id: int | None,
        threads: int = 4,
        depth: int = 2,
        hw_decoder_load: float = 0.0,
    ) -> None:
        self.depth = depth
        self._device_id = device_id
        self._pipe = _graph(
            size,
            "cpu" if device_id is None else "mixed",
            hw_decoder_load,
            batch_size=batch_size,
            num_threads=threads,
            device_id=device_id,
            prefetch_queue_depth=1,  # so that every `schedule_run` is one run, the first one too
            exec_dynamic=True,  # outputs own their memory: torch may keep them without a copy
        )
        self._pipe.build()

    def feed(self, encoded: list[Encoded], boxes: Boxes, flips: NDArray[np.int32]) -> None:
        """Queue n images: uint8 (bytes,) each, boxes (n, 4) top, left, height, width in pixels, flips (n,) 0 or 1."""
        self._pipe.feed_input("encoded", encoded)
        self._pipe.feed_input("anchor", np.ascontiguousarray(boxes[:, :2]))
        self._pipe.feed_input("shape", np.ascontiguousarray(boxes[:, 2:]))
        self._pipe.feed_input("flip", flips)
        self._pipe.schedule_run()

    def take(self) -> Tensor:
        """The oldest batch: uint8 (n, 3, size, size) on the device, in channels-last memory, not copied.

        Raises:
            DataError: an image cannot be decoded. That batch is lost; the queue goes on with the next.
        """
        stream = None if self._device_id is None else torch.cuda.current_stream(self._device_id)
        try:
            (images,) = self._pipe.outputs(cuda_stream=stream)
        except RuntimeError as error:
            raise DataError(f"an image of this batch cannot be decoded: {_cause(error)}") from error
        return from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)


def _cause(error: RuntimeError) -> str:
    """The line of a DALI error that tells what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    after = lines.index("encountered:") + 1 if "encountered:" in lines else 0
    return lines[after] if after < len(lines) else str(error)
