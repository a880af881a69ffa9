"""Videos: whether one can be trained on, and in which bytes it is stored.

Every video is decoded in full once, strictly, by PyAV (the extra `video`). Bytes are kept of a video of 8 bits and
4:2:0, which is what GPUs decode, that all readers show alike. Another one, such as a rotated one, is encoded anew
(`video_encoding`), and so is with `resize` any that is not small and fast to seek in already. With `frames`, all of
them become JPEGs (`video_jpegs`).
"""

import io
import math
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

from PIL import Image

from shards.media.media import DEFAULT_MAX_PIXELS, Checked, CheckOptions, Rejected, refuse_huge
from shards.media.video_stream import Examined, examine, indexed, opened, suffix_of

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

KEY_FRAME_EVERY = 16  # frames, of what is encoded anew
_SHEET = (3, 2)  # frames across and down in a thumbnail
_GAP = 2  # pixels between them
_MOVING = 3  # seconds
_PIXELS = frozenset({"yuv420p", "yuvj420p", "nv12"})


class VideoMedia:
    """Videos: what FFmpeg decodes of MP4, QuickTime, WebM, Matroska and AVI files."""

    name = "video"
    kept = frozenset({"mp4", "m4v", "mov", "webm", "avi", "mkv"})
    suffixes = kept
    changed = (
        "has a rotation, which readers do not apply, more than one video stream, or key frames that are none: use "
        "`maskfeat-shards build`, which encodes it anew"
    )

    def check(self, data: bytes, options: CheckOptions) -> Checked:
        """Decode a video strictly and return what to store.

        Raises:
            Rejected: it is damaged, or not a video that all readers show alike.
            ShardError: PyAV is missing.
        """
        if not data:
            raise Rejected("empty", "0 bytes")
        refuse_huge(len(data))
        if options.frames == "jpeg":
            return _as_jpegs(data, options)
        with opened(data) as (container, stream):
            suffix = suffix_of(container)
            found = examine(data, container, stream, options.max_pixels)
        if options.resize is None and found.stream.pix_fmt not in _PIXELS:
            raise _pixel_format(found.stream.pix_fmt)
        if not found.plain or (options.resize is not None and not _is_small(found, options.resize)):
            from shards.media.video_encoding import encode  # needs PyAV

            rate = Fraction(found.stream.fps_num, found.stream.fps_den)
            data, suffix = encode(data, options.resize, rate), "mp4"
            with opened(data) as (container, stream):
                found = examine(data, container, stream, options.max_pixels)
        return Checked(data, suffix, found.height, found.width, found.stream)

    def probe(self, data: bytes) -> Checked:
        """Return what `check` has returned with the bytes that it stored. It decodes them where their index lacks it.

        Where the JPEGs of Motion JPEG lie is told even if `check` has not made them, and then did not tell.

        Raises Rejected where they cannot be read.
        """
        with opened(data) as (container, stream):
            found = indexed(data, container, stream)
            height, width, suffix = stream.codec_context.height, stream.codec_context.width, suffix_of(container)
        return self.check(data, CheckOptions()) if found is None else Checked(data, suffix, height, width, found)

    def thumbnail(self, data: bytes, side: int) -> bytes:
        """Return a small JPEG with frames from all of a stored video, at most `side` pixels a side.

        Raises Rejected where it cannot be decoded.
        """
        across, down = _SHEET
        with opened(data) as (container, stream):
            frames = examine(data, container, stream, DEFAULT_MAX_PIXELS).stream.frames
        chosen = [place * (frames - 1) // (across * down - 1) for place in range(across * down)]
        with opened(data) as (container, stream):
            shown = {
                number: _small(frame, (side - _GAP * (across - 1)) // across)
                for number, frame in enumerate(container.decode(stream))
                if number in chosen
            }
        width, height = shown[0].size
        wide, high = width + _GAP, height + _GAP
        sheet = Image.new("RGB", (wide * across - _GAP, high * down - _GAP), "white")
        for place, number in enumerate(chosen):
            sheet.paste(shown[number], (place % across * wide, place // across * high))
        file = io.BytesIO()
        sheet.save(file, "JPEG", quality=80)
        return file.getvalue()

    def moving(self, data: bytes, side: int) -> bytes:
        """Return the first seconds of a stored video, as a small MP4 that browsers play. Raises Rejected likewise."""
        from shards.media.video_encoding import encode  # needs PyAV

        with opened(data) as (_, stream):
            rate = Fraction(stream.average_rate or stream.base_rate or 25)
        return encode(data, side, rate, most=math.ceil(_MOVING * rate))


VIDEO = VideoMedia()


def _as_jpegs(data: bytes, options: CheckOptions) -> Checked:
    with opened(data) as (container, stream):
        from shards.media.video_jpegs import JpegFrames  # needs PyAV

        jpegs = JpegFrames(options.resize, options.frame_stride)
        found = examine(data, container, stream, options.max_pixels, jpegs.add)
    return jpegs.stored(found.stream)


def _is_small(found: Examined, side: int) -> bool:
    """Whether a video is already as one that is encoded anew for this side."""
    stream = found.stream
    gaps = [later - earlier for earlier, later in pairwise([*stream.key_frames, stream.frames])]
    return (
        min(found.height, found.width) <= side
        and (stream.codec, stream.pix_fmt, stream.pts) == ("h264", "yuv420p", None)
        and not (found.sound or found.reordered)
        and max(gaps, default=stream.frames) <= KEY_FRAME_EVERY
    )


def _pixel_format(name: str) -> Rejected:
    import av

    bits = max((component.bits for component in av.VideoFormat(name).components), default=8)
    reason = f"{bits}-bit" if bits > 8 else "not 4:2:0"
    return Rejected(reason, f"its pixels are {name}, which GPUs do not decode; `build --resize PX` converts them")


def _small(frame: "VideoFrame", side: int) -> Image.Image:
    scale = side / max(frame.height, frame.width)
    width, height = (max(1, round(length * scale)) for length in (frame.width, frame.height))
    return Image.fromarray(frame.to_ndarray(format="rgb24", width=width, height=height))
