"""Compare our loader of clips on a CPU with others, on the same files."""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.figures import Figure
from benchmarks.peers import CROP_SCALE
from benchmarks.racing import ROUNDS, compare
from pipeline.data.loader import Loader
from pipeline.data.plan import Plan
from pipeline.data.reader import Reader
from pipeline.data.request import training_requests
from pipeline.data.settings import Data
from shards.manifest import Manifest

BATCH, LOADED = 4, 6  # clips per batch, and batches per round
FRAMES, STRIDE = 16, 4

Pixels = NDArray[np.uint8]  # (frames, height, width, 3)
Make = Callable[[Path, np.random.Generator, int], Tensor]  # makes a clip (3, FRAMES, size, size) from a file


def clips(shards: Path, threads: int, size: int, jpegs: Path | None = None) -> list[Figure]:
    """Measure clips of 16 frames, every 4th: clips per second, and CPU milliseconds per clip, with as many workers.

    Args:
        shards: a data set of videos.
        threads: decoding threads, or workers of others.
        size: side of the crops, in pixels.
        jpegs: a data set of the same videos as JPEGs of their frames.
    """
    manifest = Manifest.load(shards)
    with TemporaryDirectory() as scratch:
        files = _written(manifest, Path(scratch))
        ways: dict[str, Make] = {"PyAV, in a DataLoader": pyav, "SlowFast's PyAV": slowfast}
        with suppress(ImportError, RuntimeError):  # torchcodec does not find FFmpeg's libraries
            torchcodec(files[0], np.random.default_rng(0), size)
            ways["torchcodec, in a DataLoader"] = torchcodec
        with suppress(ImportError):
            videomae(files[0], np.random.default_rng(0), size)
            ways["VideoMAE's decord"] = videomae
        contestants = {"ours": _ours(manifest, threads, size)}
        if jpegs is not None:
            contestants["ours, of JPEGs"] = _ours(Manifest.load(jpegs), threads, size)
        contestants |= {name: _Peer(files, make, threads, size).start for name, make in ways.items()}
        rates, costs = _race(contestants)
    where = f"of {FRAMES} frames, {size} px, {threads} threads or workers"
    return [
        compare(f"clips {where}; {FRAMES} times as many frames", "clips/s", rates),
        compare(f"CPU time of a clip {where}", "ms", costs),
    ]


def _race(contestants: dict[str, Callable[[], Iterator[Any]]]) -> tuple[dict[str, float], dict[str, float]]:
    """Return each one's clips per second and CPU milliseconds per clip, the median over rounds in turns."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    costs: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, start in contestants.items():
            cpu, begin = _cpu_seconds(), time.perf_counter()
            made = sum(len(batch) for batch in islice(start(), LOADED))
            rates[name].append(made / (time.perf_counter() - begin))
            costs[name].append((_cpu_seconds() - cpu) / made * 1000)
    return {name: median(of) for name, of in rates.items()}, {name: median(of) for name, of in costs.items()}


def _cpu_seconds() -> float:
    """Return the CPU time of this process and its ended children, such as a DataLoader's workers by then."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(of.ru_utime + of.ru_stime for of in used)


def _written(manifest: Manifest, folder: Path) -> list[Path]:
    """Write the videos of a data set to separate files, for others to read."""
    files = []
    for number, data in enumerate(Reader(manifest).submit(np.arange(len(manifest))).result()):
        assert not isinstance(data, str), data
        files.append(folder / str(number))
        files[-1].write_bytes(data.tobytes())
    return files


def _ours(manifest: Manifest, threads: int, size: int) -> Callable[[], Iterator[Any]]:
    data = Data(
        shards=manifest.root,
        image_size=size,
        crop_scale=CROP_SCALE,
        decode_threads=threads,
        read_threads=1,
        lanes=1,
        frames=FRAMES,
        sampling="stride",
        stride=STRIDE,
    )
    plan = Plan(manifest.counts, lanes=1, block=len(manifest))

    def start() -> Iterator[Tensor]:
        requests = training_requests(
            plan, manifest, data, first_step=0, batch_size=BATCH, micro_batch=BATCH, rank=0, world_size=1
        )
        loader = Loader(manifest, data, BATCH, torch.device("cpu"))
        for batch in loader.batches(islice(requests, LOADED)):
            yield batch.inputs
        loader.close()

    return start


class _Peer(Dataset[Tensor]):
    """Random clips of files, made in one of the other ways, in the workers of a DataLoader."""

    def __init__(self, files: list[Path], make: Make, workers: int, size: int) -> None:
        self._files, self._make, self._workers, self._size = files, make, workers, size

    def start(self) -> Iterator[Tensor]:
        """Start a loader, which ends with the last batch."""
        return iter(DataLoader(self, BATCH, num_workers=self._workers))

    def __len__(self) -> int:
        return BATCH * LOADED

    def __getitem__(self, number: int) -> Tensor:
        torch.set_num_threads(1)
        random = np.random.default_rng(number)
        clip = self._make(self._files[int(random.integers(len(self._files)))], random, self._size)
        return clip.flip(-1) if random.uniform() < 0.5 else clip.contiguous()


def pyav(file: Path, random: np.random.Generator, size: int) -> Tensor:
    """Seek to the key frame before the clip and decode to its end, each wanted frame converted."""
    import av

    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        length = stream.frames
        numbers = _numbers(length, random)
        step = stream.duration / length
        stamps = [(stream.start_time or 0) + number * step for number in numbers]
        container.seek(int(stamps[0]), stream=stream)
        frames: list[Any] = []
        for frame in container.decode(stream):
            while len(frames) < FRAMES and frame.pts > stamps[len(frames)] - step / 2:
                frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == FRAMES:
                break
    return _antialiased(_cropped(np.stack(frames), random), size)


def torchcodec(file: Path, random: np.random.Generator, size: int) -> Tensor:
    """Take the frames by number; torchcodec scans the file to find them exactly."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(file), num_ffmpeg_threads=1, dimension_order="NHWC")
    frames = decoder.get_frames_at(indices=_numbers(len(decoder), random)).data.numpy()
    return _antialiased(_cropped(frames, random), size)


def videomae(file: Path, random: np.random.Generator, size: int) -> Tensor:
    """Decode as VideoMAE's `kinetics.py`: decord with one thread, then Pillow's bilinear resize of each frame."""
    from decord import VideoReader, cpu

    reader = VideoReader(str(file), num_threads=1, ctx=cpu(0))
    crop = _cropped(reader.get_batch(_numbers(len(reader), random)).asnumpy(), random)
    small = [np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR)) for frame in crop]
    return torch.from_numpy(np.stack(small)).permute(3, 0, 1, 2)


def slowfast(file: Path, random: np.random.Generator, size: int) -> Tensor:
    """Decode as SlowFast's `decoder.py` and `transform.py`: all frames of the span, floats without antialiasing."""
    import av

    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        length, step = stream.frames, stream.duration / stream.frames
        span = min(STRIDE * FRAMES, length)
        first = int(random.uniform(0, length - span) * step)
        last = int(first + (span - 1) * step)
        container.seek(max(first - 1024, 0), any_frame=False, backward=True, stream=stream)
        met = []
        for frame in container.decode(video=0):
            if frame.pts >= first:
                met.append(frame)
            if frame.pts > last:
                break
        frames = np.stack([frame.to_rgb().to_ndarray() for frame in met])
    chosen = np.linspace(0, len(frames) - 1, FRAMES).astype(int)
    floats = (torch.from_numpy(frames[chosen]).float() / 255 - 0.45) / 0.225
    crop = _cropped(floats.numpy(), random)
    return F.interpolate(torch.from_numpy(crop).permute(3, 0, 1, 2), (size, size), mode="bilinear")


def _numbers(length: int, random: np.random.Generator) -> list[int]:
    """Draw a clip: frame numbers; the last is repeated where the video is too short."""
    first = int(random.integers(max(length - STRIDE * (FRAMES - 1), 1)))
    return [min(first + STRIDE * frame, length - 1) for frame in range(FRAMES)]


def _cropped(frames: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
    sides = np.array(frames.shape[1:3])
    height, width = (sides * np.sqrt(random.uniform(*CROP_SCALE))).astype(int)
    top, left = (random.uniform(size=2) * (sides - (height, width))).astype(int)
    return frames[:, top : top + height, left : left + width]


def _antialiased(frames: Pixels, size: int) -> Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).permute(1, 0, 2, 3)
