"""Decode videos to clips of one size on the device: by PyAV on a CPU, by NVIDIA DALI on a GPU.

The guarantees of `decoder` on crops of images hold for clips. A CPU decodes each video in one thread, since more
threads do not help at training resolutions, and each frame once, even if several clips contain it.
"""

import ctypes
from collections import deque
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import record_function

from model.size import ImageSize
from pipeline.data.decode import queues
from pipeline.data.decode.frames import FramesError, frames_at
from pipeline.data.decode.graphs import Clips, Crops, clip_nodes
from pipeline.data.decode.queues import Decoded, Decoder, GraphDecoder, end, hanging, resize_into
from pipeline.data.errors import DataError

Codecs = Collection[tuple[str, str]]  # pairs of codec and pixel format, by FFmpeg's names

# Decoded by NVDEC through DALI: 8 bits and 4:2:0
_NVDEC = frozenset({"h264", "hevc", "mjpeg", "mpeg4", "vp8", "vp9"})
_NVDEC_PIXELS = frozenset({"nv12", "yuv420p", "yuvj420p"})
# The compute capability from which on GPUs decode AV1, and that of Hopper, which does not: NVIDIA's NVDEC Application
# Note 13.0, section 2. GA100 (A100) has 8.0, other Ampere GPUs 8.6, Ada 8.9, Blackwell 10.0 or more.
_AV1_SINCE, _HOPPER = (8, 6), (9, 0)
_LIBRARY = "libnvcuvid.so.1"


class CpuClipDecoder:
    """Decodes clips on a CPU: in several threads, a video each.

    Args:
        size: size that crops are resized to.
        threads: threads that decode and resize.
    """

    def __init__(self, size: ImageSize, threads: int) -> None:
        self._size = size
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._fed: deque[tuple[Tensor, list[Future[str | None]]]] = deque()

    def feed(self, crops: Crops) -> None:
        """Queue a batch."""
        assert isinstance(crops, Clips)
        # The memory is NumPy's: torch would start its own thread pool in each of our threads
        clips = np.zeros((*crops.frames.shape, 3, *self._size), dtype=np.uint8)
        videos = [self._threads.submit(self._decode, clips, crops, place) for place in range(len(crops.encoded))]
        self._fed.append((torch.from_numpy(clips), videos))

    def take(self) -> Decoded:
        """Return the oldest batch. Raises DataError when decoding hangs."""
        clips, videos = self._fed.popleft()
        try:
            problems = {place: video.result(queues.TIMEOUT) for place, video in enumerate(videos)}
        except TimeoutError:
            raise hanging() from None
        return Decoded(clips.movedim(2, 1), {place: why for place, why in problems.items() if why})

    def close(self) -> None:
        """Stop the threads; batches that were not taken are lost."""
        end(self._threads, [video for _, videos in self._fed for video in videos])

    @record_function("decode")
    def _decode(self, out: NDArray[np.uint8], crops: Clips, place: int) -> str | None:
        """Write all clips of a video to their places in (n, T, 3, H, W). Return an error message, if any."""
        encoded, repeats = crops.encoded[place], crops.repeats
        if encoded is None:
            return None
        here = slice(place * repeats, (place + 1) * repeats)
        stamps, boxes, flips, clips = crops.stamps[here], crops.boxes[here], crops.flips[here], out[here]
        try:
            for stamp, pixels in frames_at(encoded, np.unique(stamps).tolist()):
                whole = torch.from_numpy(pixels)
                for repeat, frame in np.argwhere(stamps == stamp):
                    top, left, height, width = boxes[repeat].tolist()
                    if top + height > whole.shape[0] or left + width > whole.shape[1]:
                        raise FramesError(f"a frame is {whole.shape[1]} x {whole.shape[0]} pixels, not as when indexed")
                    crop = whole[top : top + height, left : left + width].contiguous()
                    resize_into(clips[repeat, frame], crop, bool(flips[repeat]))
        except FramesError as error:
            clips[:] = 0
            return str(error)
        return None


class GpuClipDecoder(GraphDecoder):
    """Decodes clips on a CUDA device. See `GraphDecoder`.

    Args:
        batch_size: the most videos per batch.
        frames: frames per clip.
        size: size that crops are resized to.
        device, threads: see `GraphDecoder`.
        repeats: clips per video.
    """

    def __init__(
        self, batch_size: int, frames: int, size: ImageSize, device: torch.device, threads: int, repeats: int = 1
    ) -> None:
        super().__init__(batch_size, (frames, *size, 3), device, threads, clip_nodes(size, repeats))


def clip_decoder_for(
    device: torch.device, batch_size: int, frames: int, size: ImageSize, threads: int, repeats: int, codecs: Codecs
) -> Decoder:
    """Return the clip decoder for a device. Raises DataError where it cannot decode one of the codecs."""
    if device.type == "cuda":
        _refuse_on_gpu(codecs, device)
        return GpuClipDecoder(batch_size, frames, size, device, threads, repeats)
    _refuse_on_cpu(codecs)
    return CpuClipDecoder(size, threads)


def gpu_codecs(capability: tuple[int, int]) -> frozenset[str]:
    """Return the codecs, by FFmpeg's names, that GPUs of a compute capability decode."""
    return _NVDEC | {"av1"} if capability >= _AV1_SINCE and capability != _HOPPER else _NVDEC


def _refuse_on_gpu(codecs: Codecs, device: torch.device) -> None:
    try:
        ctypes.CDLL(_LIBRARY)
    except OSError:
        raise DataError(
            f"videos cannot be decoded on this GPU: {_LIBRARY} of its driver is missing; start the container with "
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"
        ) from None
    known = gpu_codecs(torch.cuda.get_device_capability(device))
    wrong = [pair for pair in codecs if pair[0] not in known or pair[1] not in _NVDEC_PIXELS]
    _refuse(wrong, f"the GPU ({torch.cuda.get_device_name(device)})")


def _refuse_on_cpu(codecs: Codecs) -> None:
    try:
        import av
    except ImportError:
        raise DataError("videos need PyAV: pip install 'maskfeat-pipeline[video]'") from None
    _refuse([pair for pair in codecs if pair[0] not in av.codecs_available], "PyAV")


def _refuse(codecs: Codecs, by: str) -> None:
    if codecs:
        names = ", ".join(sorted(f"{codec} of {pixels} pixels" for codec, pixels in codecs))
        raise DataError(
            f"{by} does not decode {names}, which the data set has: rebuild it with `maskfeat-shards build "
            "--resize`, which converts all videos to H.264"
        )
