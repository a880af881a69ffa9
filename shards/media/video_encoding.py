"""Encoding a video anew, so that clips of it are decoded fast and every reader shows the same frames.

H.264 of 8-bit 4:2:0 without B frames, a key frame every 16 frames, a constant rate, without sound, upright. Every shown
frame is kept: a variable rate becomes its mean. One thread encodes, so that the same input gives the same bytes.
"""

import io
from fractions import Fraction
from itertools import islice
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange

from shards.media.video import KEY_FRAME_EVERY
from shards.media.video_stream import display_matrix, opened

_QUALITY = "20"  # x264's constant rate factor
_PRESET = "veryfast"  # as small as slower ones at a third of their time, half a decibel below


def encode(data: bytes, side: int | None, rate: Fraction, most: int | None = None) -> bytes:
    """Return a video as MP4.

    Args:
        data: of a file that `shards.media.video` has checked.
        side: shrink the short side to this many pixels where it is longer; None: keep the size.
        rate: frames a second, or seconds a frame, of which 1001 is the largest denominator that is kept.
        most: encode only so many frames, the first ones; None: all of them.
    """
    file = io.BytesIO()
    with opened(data) as (source, stream), av.open(file, "w", format="mp4") as target:
        rate = rate.limit_denominator(1001) if rate > 1 else 1 / (1 / rate).limit_denominator(1001)
        encoder = target.add_stream("libx264", rate=rate)
        encoder.pix_fmt, encoder.thread_count = "yuv420p", 1
        encoder.options = {
            "crf": _QUALITY,
            "preset": _PRESET,
            "tune": "fastdecode",
            "bf": "0",
            "g": str(KEY_FRAME_EVERY),
            "sc_threshold": "0",
        }
        for number, frame in enumerate(islice(source.decode(stream), most)):
            turned = upright(frame)
            height, width = shrunk(turned.height, turned.width, side)
            if number == 0:
                encoder.height, encoder.width = height, width
                encoder.time_base = encoder.codec_context.time_base = 1 / rate
                encoder.codec_context.colorspace = turned.colorspace
                encoder.codec_context.color_range = ColorRange.MPEG
            small = turned.reformat(
                width, height, "yuv420p", interpolation="BICUBIC", dst_color_range=ColorRange.MPEG, threads=1
            )
            small.pts, small.time_base, small.pict_type = number, 1 / rate, 0
            target.mux(encoder.encode(small))
        target.mux(encoder.encode(None))
    return file.getvalue()


def upright(frame: VideoFrame) -> VideoFrame:
    """Return a frame as it is to be shown."""
    a, b, c, d = display_matrix(frame) or (1, 0, 0, 1)
    if a == d == 1:
        return frame
    pixels: Any = frame.to_ndarray(format="rgb24")
    turned = (pixels.swapaxes(0, 1) if b else pixels)[:: b + d, :: a + c]
    return VideoFrame.from_ndarray(np.ascontiguousarray(turned), format="rgb24")


def shrunk(height: int, width: int, side: int | None) -> tuple[int, int]:
    """Return even sides, at least 2, of which the shorter is `side` at most."""
    scale = 1.0 if side is None else min(1.0, side / min(height, width))
    shrunk_height, shrunk_width = (max(2, round(length * scale / 2) * 2) for length in (height, width))
    return shrunk_height, shrunk_width
