"""DALI graphs that decode crops of images, or of frames of videos.

This module does not import torch, so that the process of `selftest` starts fast.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

from model.size import ImageSize
from pipeline.data.augment import Boxes
from pipeline.data.clips import Frames


@dataclass(frozen=True)
class Crops:
    """Encoded images, m of uint8 (bytes,), and the n crops to make of them, those of an image in a row.

    None is an unreadable image. `boxes`, int32 (n, 4), are top, left, height and width in pixels; `flips`,
    int32 (n,), are 1 to mirror.
    """

    encoded: list[NDArray[np.uint8] | None]
    boxes: Boxes
    flips: NDArray[np.int32]

    @property
    def repeats(self) -> int:
        """The number of crops per image."""
        return len(self.boxes) // len(self.encoded)

    @property
    def readable(self) -> list[int]:
        """The places of the images that could be read."""
        return [place for place, encoded in enumerate(self.encoded) if encoded is not None]

    def of(self, places: Sequence[int]) -> Self:
        """Return those of the images at `places`, of which there is at least one."""
        images = len(self.encoded)
        arrays = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "encoded"}
        parts = {name: array.reshape(images, -1, *array.shape[1:])[places] for name, array in arrays.items()}
        flat = {name: part.reshape(-1, *part.shape[2:]) for name, part in parts.items()}
        return replace(self, encoded=[self.encoded[place] for place in places], **flat)

    def one_by_one(self) -> Iterator[Self]:
        """Yield each image alone, in order."""
        for place in range(len(self.encoded)):
            yield self.of([place])

    def inputs(self) -> dict[str, Any]:
        """Return the inputs of a graph by name, in batches of one entry per image."""
        inputs: dict[str, Any] = {"encoded": self.encoded}
        for repeat in range(self.repeats):
            boxes = self.boxes[repeat :: self.repeats]
            inputs[f"anchor{repeat}"] = np.ascontiguousarray(boxes[:, :2])
            inputs[f"shape{repeat}"] = np.ascontiguousarray(boxes[:, 2:])
            inputs[f"flip{repeat}"] = np.ascontiguousarray(self.flips[repeat :: self.repeats])
        return inputs


@dataclass(frozen=True)
class Clips(Crops):
    """Encoded videos, and n clips of T frames, whose frames share the clip's crop. See `Crops`.

    `frames`, int32 (n, T), are frame numbers from 0, `stamps`, int64 (n, T), their time stamps; both ascend.
    """

    frames: Frames
    stamps: NDArray[np.int64]

    def inputs(self) -> dict[str, Any]:
        """See `Crops`. Each frame is decoded once, even if several clips contain it."""
        clips = self.frames.reshape(len(self.encoded), self.repeats, -1)
        wanted = [np.unique(frames) for frames in clips]
        inputs = super().inputs() | {"frames": wanted}
        for repeat in range(self.repeats):
            of_repeat = zip(wanted, clips[:, repeat], strict=True)
            inputs[f"order{repeat}"] = [np.searchsorted(frames, clip).astype(np.int32) for frames, clip in of_repeat]
        return inputs


@dataclass(frozen=True)
class Decoding:
    """Options of a graph's decoder. They do not change the pixels of a crop, except that `fancy` changes its chroma.

    Attributes:
        regions: decode only the crop of an image; else decode all of it, then crop.
        hardware: share of each batch for the GPU's JPEG hardware, 0 or 1.
        fancy: on a GPU, interpolate chroma, as the CPU always does, instead of repeating it.
    """

    regions: bool = True
    hardware: int = 0
    fancy: bool = False


Source = Callable[[str, int, Any], Any]  # makes the node of an input from its name, dimensions and type
Nodes = Callable[[str, Source], list[Any]]  # makes a graph's outputs from its decoder's device and its inputs


def image_nodes(decoding: Decoding = Decoding(), size: ImageSize | None = None, repeats: int = 1) -> Nodes:
    """Return the nodes of a graph that makes crops of images, uint8 (height, width, 3).

    Args:
        decoding: the decoder options.
        size: size that crops are resized to before they are flipped; None: crops keep their size.
        repeats: crops per image, each a separate output.
    """

    def nodes(device: str, source: Source) -> list[Any]:
        encoded = source("encoded", 1, types.UINT8)
        options = {
            "device": device,
            "output_type": types.RGB,
            "hw_decoder_load": decoding.hardware,
            "jpeg_fancy_upsampling": decoding.fancy,
        }
        whole = None if decoding.regions else fn.decoders.image(encoded, **options)
        outputs = []
        for repeat in range(repeats):
            anchor, shape = (source(f"{name}{repeat}", 1, types.INT32) for name in ("anchor", "shape"))
            if whole is None:
                crop = fn.decoders.image_slice(encoded, anchor, shape, axes=(0, 1), **options)
            else:
                crop = fn.slice(whole, anchor, shape, axes=(0, 1))
            outputs.append(crop if size is None else _resized(crop, size, repeat, source))
        return outputs

    return nodes


def clip_nodes(size: ImageSize, repeats: int = 1) -> Nodes:
    """Return the nodes of a graph that makes clips of videos, uint8 (T, height, width, 3). See `image_nodes`."""

    def nodes(device: str, source: Source) -> list[Any]:
        # By default, frames beyond the end are black
        wanted = source("frames", 1, types.INT32)
        frames = fn.decoders.video(source("encoded", 1, types.UINT8), device=device, frames=wanted, pad_mode="none")
        outputs = []
        for repeat in range(repeats):
            clip = fn.sequence_rearrange(frames, new_order=source(f"order{repeat}", 1, types.INT32))
            anchor, shape = (source(f"{name}{repeat}", 1, types.INT32) for name in ("anchor", "shape"))
            outputs.append(_resized(fn.slice(clip, anchor, shape, axes=(1, 2)), size, repeat, source))
        return outputs

    return nodes


def _resized(crop: Any, size: ImageSize, repeat: int, source: Source) -> Any:
    resized = fn.resize(crop, size=size, interp_type=types.INTERP_CUBIC, antialias=True)
    return fn.flip(resized, horizontal=source(f"flip{repeat}", 0, types.INT32))


class Graph:
    """A queue of batches within DALI. One thread may feed it while another takes from it.

    Args:
        batch_size: the most images or videos per batch.
        threads: CPU threads.
        device_id: CUDA device, None for the CPU.
        nodes: the computation.
    """

    def __init__(self, batch_size: int, threads: int, device_id: int | None, nodes: Nodes) -> None:
        self._inputs: list[str] = []
        self._pipeline = Pipeline(
            batch_size=batch_size,
            num_threads=threads,
            device_id=device_id,
            prefetch_queue_depth=1,  # so that every `schedule_run` is one run, including the first
            exec_dynamic=True,  # outputs own their memory: torch may keep them without a copy
        )
        with self._pipeline:
            self._pipeline.set_outputs(*nodes("cpu" if device_id is None else "mixed", self._source))
        self._pipeline.build()
        # DALI documents inputs as thread-safe, but not the start and end of runs
        self._lock = threading.Lock()

    def _source(self, name: str, dimensions: int, dtype: Any) -> Any:
        self._inputs.append(name)
        return fn.external_source(name=name, ndim=dimensions, dtype=dtype)

    def feed(self, crops: Crops) -> None:
        """Queue a batch, whose bytes are copied; all of its images must have been read."""
        inputs = crops.inputs()
        for name in self._inputs:
            self._pipeline.feed_input(name, inputs[name])
        with self._lock:
            self._pipeline.schedule_run()

    def take(self, stream: Any = None) -> tuple[Any, ...]:
        """Return the outputs of the oldest batch, a TensorList each.

        Args:
            stream: CUDA stream that waits for them; None: the caller does.

        Raises:
            RuntimeError: one of its images cannot be decoded. This batch is lost; later ones are not.
        """
        with self._lock:
            outputs: tuple[Any, ...] = self._pipeline.outputs(cuda_stream=stream)
        return outputs


def cause(error: RuntimeError) -> str:
    """Extract the line of a DALI error that describes the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    after = lines.index("encountered:") + 1 if "encountered:" in lines else 0
    return lines[after] if after < len(lines) else str(error)
