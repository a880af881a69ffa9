"""Re-encode a video so that clips decode fast and every reader shows the same frames.

The result is H.264, 8-bit 4:2:0, without B frames and sound, upright, with a key frame every 16 frames and a constant
rate. Every shown frame is kept: a variable rate becomes its mean. The same input gives the same bytes: one thread
encodes, without x264's macroblock tree, which varies from run to run where a frame has only a few macroblocks.
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

OPTIONS = {  # of x264; as small as with the macroblock tree at a rate factor of 20, and as good
    "preset": "veryfast",  # as small as slower ones at a third of their time, half a decibel below
    "crf": "21",
    "tune": "fastdecode",
    "mbtree": "0",
    "bf": "0",
    "g": str(KEY_FRAME_EVERY),
    "sc_threshold": "0",
}


def encode(data: bytes, side: int | None, rate: Fraction, most: int | None = None) -> bytes:
    """Return a video as MP4.

    Args:
        data: a file that `shards.media.video` has checked.
        side: shrink the short side to this many pixels where it is longer; None: keep the size.
        rate: frames per second, or seconds per frame; denominators above 1001 are rounded.
        most: encode only this many frames from the start; None: all of them.
    """
    file = io.BytesIO()
    with opened(data) as (source, stream), av.open(file, "w", format="mp4") as target:
        rate = rate.limit_denominator(1001) if rate > 1 else 1 / (1 / rate).limit_denominator(1001)
        encoder = target.add_stream("libx264", rate=rate)
        encoder.pix_fmt, encoder.thread_count = "yuv420p", 1
        encoder.options = OPTIONS
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
    """Return a frame as it is to be displayed."""
    a, b, c, d = display_matrix(frame) or (1, 0, 0, 1)
    if a == d == 1:
        return frame
    pixels: Any = frame.to_ndarray(format="rgb24")
    turned = (pixels.swapaxes(0, 1) if b else pixels)[:: b + d, :: a + c]
    return VideoFrame.from_ndarray(np.ascontiguousarray(turned), format="rgb24")


def shrunk(height: int, width: int, side: int | None) -> tuple[int, int]:
    """Return even sides of at least 2, the shorter of which is at most `side`."""
    scale = 1.0 if side is None else min(1.0, side / min(height, width))
    shrunk_height, shrunk_width = (max(2, round(length * scale / 2) * 2) for length in (height, width))
    return shrunk_height, shrunk_width
