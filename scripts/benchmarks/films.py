"""Make videos for benchmarks: crops that move over the images of a data set, encoded by PyAV."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.reader import Reader
from shards.build import build
from shards.manifest import Manifest
from shards.media.video_encoding import OPTIONS

RATE = 30  # frames per second
STEP = 2  # pixels per frame that a crop moves to the right

Film = NDArray[np.uint8]  # (frames, height, width, 3)


@dataclass(frozen=True)
class Encoding:
    """A way to encode a film.

    Attributes:
        codec, container, pixels: FFmpeg's names.
        options: options of the encoder.
        stamps: the time stamps of frames: at a constant rate, at a variable one, or the first ten never, by an edit
            list.
    """

    codec: str = "libx264"
    container: str = "mp4"
    pixels: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)
    stamps: str = "constant"


STORED = Encoding(options=OPTIONS)
ENCODINGS = {
    "H.264 as --resize writes it": STORED,
    "H.264, B frames": Encoding(options={"g": "24", "bf": "3"}),
    "H.264, open GOP": Encoding(options={"g": "24", "bf": "3", "x264-params": "open-gop=1"}),
    "H.264, variable rate": Encoding(options={"g": "24", "bf": "2"}, stamps="variable"),
    "H.264, edit list": Encoding(options={"g": "24", "bf": "2"}, stamps="edited"),
    "HEVC": Encoding("libx265", options={"g": "24", "x265-params": "log-level=none"}),
    "AV1": Encoding("libsvtav1", options={"g": "24", "preset": "12", "svtav1-params": "level-of-parallelism=1"}),
    "MPEG-4": Encoding("mpeg4", options={"g": "24", "b": "2M"}),
    "VP8": Encoding("libvpx", "webm", options={"g": "24", "cpu-used": "8", "b": "2M"}),
    "VP9": Encoding("libvpx-vp9", "webm", options={"g": "24", "cpu-used": "8", "b": "2M"}),
    "MJPEG": Encoding("mjpeg", "avi", "yuvj420p"),
}


def film(picture: Image.Image, frames: int, height: int, width: int) -> Film:
    """Move a crop over a picture, so that no two frames are alike."""
    canvas = picture.convert("RGB").resize((width + STEP * (frames - 1), height), Image.Resampling.BICUBIC)
    pixels = np.asarray(canvas)
    return np.stack([pixels[:, STEP * frame : STEP * frame + width] for frame in range(frames)])


def encoded(frames: Film, how: Encoding) -> bytes:
    """Encode a film as a file, by one thread."""
    file = io.BytesIO()
    base = Fraction(1, 1000) if how.stamps != "constant" else Fraction(1, RATE)
    with av.open(file, "w", format=how.container) as target:
        stream = target.add_stream(how.codec, rate=RATE)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.thread_count, stream.options = how.pixels, 1, how.options
        stream.time_base = stream.codec_context.time_base = base
        for stamp, pixels in zip(_stamps(how.stamps, len(frames)), frames, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = stamp, base
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return file.getvalue()


def _stamps(kind: str, frames: int) -> Sequence[int]:
    if kind == "variable":
        return [int(stamp) for stamp in np.random.default_rng(0).choice([20, 33, 33, 80], frames).cumsum()]
    return [33 * number - 330 for number in range(frames)] if kind == "edited" else range(frames)


def pictures(shards: Path, count: int) -> list[Image.Image]:
    """Return the first images of a data set, repeated if necessary."""
    manifest = Manifest.load(shards)
    read = Reader(manifest).submit(np.arange(count, dtype=np.int64) % len(manifest)).result()
    return [Image.open(io.BytesIO(data.tobytes())) for data in read if not isinstance(data, str)]


def make_set(shards: Path, out: Path, how: Encoding, count: int, frames: int, height: int, width: int) -> None:
    """Make a data set of `count` films in the folder `out`."""
    source = out.with_name(f"{out.name}-files")
    source.mkdir(parents=True)

    def write(number: int, picture: Image.Image) -> None:
        data = encoded(film(picture, frames, height, width), how)
        (source / f"{number:04d}.{how.container}").write_bytes(data)

    with ThreadPoolExecutor() as threads:
        list(threads.map(write, range(count), pictures(shards, count)))
    build(source, out, samples_per_shard=max(1, count // 4), workers=1)
