"""Check whether a video can be used for training, and choose the bytes to store.

Every video is decoded in full once, strictly, by PyAV (the extra `video`). The bytes of an 8-bit 4:2:0 video, which
GPUs can decode, are kept if all readers show it alike. Any other video, such as a rotated one, is re-encoded
(`video_encoding`), and with `resize` so is every one that is not yet small and fast to seek in. With `frames`, all
videos become JPEGs (`video_jpegs`).
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

KEY_FRAME_EVERY = 16  # frames, in re-encoded videos
_SHEET = (3, 2)  # frames across and down in a thumbnail
_GAP = 2  # pixels between them
_MOVING = 3  # seconds
_PIXELS = frozenset({"yuv420p", "yuvj420p", "nv12"})


class VideoMedia:
    """Videos: MP4, QuickTime, WebM, Matroska and AVI files that FFmpeg decodes."""

    name = "video"
    kept = frozenset({"mp4", "m4v", "mov", "webm", "avi", "mkv"})
    suffixes = kept
    changed = (
        "has a rotation, which readers ignore, more than one video stream, or wrongly marked key frames: use "
        "`maskfeat-shards build`, which re-encodes it"
    )

    def check(self, data: bytes, options: CheckOptions) -> Checked:
        """Decode a video strictly and return the sample to store.

        Raises:
            Rejected: it is damaged, or readers do not agree on its frames.
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
        """Return the result of `check` for bytes that it stored. It decodes them where their index is incomplete.

        For Motion JPEG, the positions of the JPEGs are returned even if `check` did not make them and did not return
        them.

        Raises Rejected where they cannot be read.
        """
        with opened(data) as (container, stream):
            found = indexed(data, container, stream)
            height, width, suffix = stream.codec_context.height, stream.codec_context.width, suffix_of(container)
        return self.check(data, CheckOptions()) if found is None else Checked(data, suffix, height, width, found)

    def thumbnail(self, data: bytes, side: int) -> bytes:
        """Return a small JPEG with frames from the whole of a stored video, at most `side` pixels per side.

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
        """Return the first seconds of a stored video as a small MP4 for browsers. Raises Rejected likewise."""
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
    """Return whether a video already meets the limits of one that is re-encoded for this side."""
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
