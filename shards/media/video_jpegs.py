"""Store videos as JPEGs of their frames, for machines whose CPUs decode JPEGs fast enough but not videos.

The JPEGs follow each other in one MP4 file of Motion JPEG. Every video reader shows it, and its index has the time
stamps; a program that knows the positions of the JPEGs reads only those of a clip, as ordinary images.
"""

import io
from fractions import Fraction
from itertools import pairwise

import av
import simplejpeg
from av.video.frame import VideoFrame

from shards.media.media import MAX_BYTES, Checked, Rejected, VideoStream
from shards.media.video_encoding import shrunk, upright
from shards.media.video_stream import indexed, opened

_QUALITY = 90  # of libjpeg: docs/how-to/video.md has the size and loss of others


class JpegFrames:
    """The frames of one video as JPEGs, 4:2:0 and upright.

    Args:
        side: shrink the short side to this many pixels where it is longer; None: keep the size.
        stride: keep the first frame and every `stride`-th after it.
    """

    def __init__(self, side: int | None, stride: int = 1) -> None:
        self._side, self._stride = side, stride
        self._jpegs: list[bytes] = []
        self._stamps: list[int] = []
        self._size = (0, 0)  # (height, width)
        self._shown = self._bytes = 0

    def add(self, frame: VideoFrame) -> None:
        """Add the next frame of the video, in display order, with its time stamp.

        Raises Rejected where the JPEGs together exceed the limit of a file.
        """
        number, self._shown = self._shown, self._shown + 1
        if number % self._stride or frame.pts is None:
            return
        turned = upright(frame)
        height, width = self._size = (
            (turned.height, turned.width) if self._side is None else shrunk(turned.height, turned.width, self._side)
        )
        pixels = turned.reformat(width, height, "rgb24", interpolation="BICUBIC", threads=1).to_ndarray()
        self._jpegs.append(simplejpeg.encode_jpeg(pixels, _QUALITY, "RGB", "420"))
        self._stamps.append(frame.pts)
        self._bytes += len(self._jpegs[-1])
        if self._bytes > MAX_BYTES:
            raise Rejected(
                "too many bytes", f"its JPEGs have more than {MAX_BYTES}: use `--resize PX` or `--frame-stride N`"
            )

    def stored(self, video: VideoStream) -> Checked:
        """Return the file of all added frames, of which there is at least one.

        The time stamps are those of the video, shifted to begin at 0. Raises Rejected where MP4 cannot hold them.

        Args:
            video: the original video.
        """
        first = self._stamps[0]
        stamps = [(stamp - first) * video.time_base_num for stamp in self._stamps]
        interval = Fraction(video.duration) / video.frames * self._stride * video.time_base_den
        try:
            data = self._muxed(stamps, round(interval) or 1, Fraction(1, video.time_base_den))
            with opened(data) as (container, stream):
                found = indexed(data, container, stream)
        except (av.error.FFmpegError, OverflowError, ValueError):
            found = None
        if found is None or found.stamps() != stamps:
            raise Rejected("bad time stamps", "MP4 cannot store the time stamps of its frames")
        return Checked(data, "mp4", *self._size, found)

    def _muxed(self, stamps: list[int], last: int, base: Fraction) -> bytes:
        """Return the MP4 file.

        Args:
            stamps: of the frames, in units of `base`.
            last: how long the last frame is shown.
            base: the unit of time, in seconds; its numerator is 1.
        """
        file = io.BytesIO()
        height, width = self._size
        with av.open(file, "w", format="mp4", options={"video_track_timescale": str(base.denominator)}) as target:
            stream = target.add_mux_stream("mjpeg", width=width, height=height)
            stream.time_base = base
            durations = [later - earlier for earlier, later in pairwise(stamps)] + [last]
            for jpeg, stamp, duration in zip(self._jpegs, stamps, durations, strict=True):
                packet = av.Packet(jpeg)
                packet.stream, packet.time_base, packet.is_keyframe = stream, base, True
                packet.pts = packet.dts = stamp
                packet.duration = duration
                target.mux(packet)
        return file.getvalue()
