"""Videos: whether one can be trained on, and in which bytes it is stored.

Every video is decoded in full once, strictly, by PyAV (the extra `video`). Bytes are kept unless they are to be resized
or carry a rotation, which no reader of training applies: such a video is encoded anew (`video_encoding`).
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from PIL import Image

from shards.files import ShardError
from shards.media.media import Checked, CheckOptions, Rejected, VideoStream, out_of_memory, refuse_huge

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream as Stream

# Of FFmpeg's containers those that are opened; others, such as playlists, may open further files and addresses
CONTAINERS = "mov,matroska,avi"

_SHEET = (3, 2)  # frames across and down in a thumbnail
# Codecs with packets that are decoded but not shown, so that there are more packets than frames
_HIDDEN_PACKETS = frozenset({"vp8", "vp9", "av1"})


class VideoMedia:
    """Videos: what FFmpeg decodes of MP4, WebM, AVI and Matroska files."""

    name = "video"
    kept = frozenset({"mp4", "m4v", "mov", "webm", "avi", "mkv"})
    suffixes = kept

    def check(self, data: bytes, options: CheckOptions) -> Checked:
        """Decode a video strictly and return what to store.

        Raises:
            Rejected: it is damaged, or not a video that all readers show alike.
            ShardError: PyAV is missing.
        """
        if not data:
            raise Rejected("empty", "0 bytes")
        refuse_huge(len(data))
        with opened(data) as (container, stream):
            suffix = suffix_of(container)
            found = _examine(container, stream, options.max_pixels)
        if found.rotation % 360 or (options.resize is not None and options.resize < min(found.height, found.width)):
            from shards.media.video_encoding import encode  # needs PyAV

            rate = Fraction(found.stream.fps_num, found.stream.fps_den)
            data, suffix = encode(data, options.resize, rate), "mp4"
            with opened(data) as (container, stream):
                found = _examine(container, stream, options.max_pixels)
        return Checked(data, suffix, found.height, found.width, found.stream)

    def probe(self, data: bytes) -> Checked:
        """Return what `check` has returned with the bytes that it stored. It decodes them, too.

        Raises Rejected where they cannot be decoded.
        """
        return self.check(data, CheckOptions())

    def thumbnail(self, data: bytes, side: int) -> bytes:
        """Return a small JPEG with frames from all of a stored video, at most `side` pixels a side."""
        across, down = _SHEET
        with opened(data) as (container, stream):
            frames = [_small(frame, side // across) for frame in container.decode(stream)]
        chosen = [frames[place * (len(frames) - 1) // (across * down - 1)] for place in range(across * down)]
        width, height = chosen[0].size
        sheet = Image.new("RGB", (width * across, height * down))
        for place, frame in enumerate(chosen):
            sheet.paste(frame, (place % across * width, place // across * height))
        file = io.BytesIO()
        sheet.save(file, "JPEG", quality=80)
        return file.getvalue()


VIDEO = VideoMedia()


class _Examined:
    """The result of decoding a video once: the size of its frames, the degrees they are rotated by, and the stream."""

    def __init__(self, height: int, width: int, rotation: int, stream: VideoStream) -> None:
        self.height, self.width, self.rotation, self.stream = height, width, rotation, stream


@contextmanager
def opened(data: bytes) -> Iterator[tuple["InputContainer", "Stream"]]:
    """Open the first video stream of a file in memory, of which every damage is an error, on one thread.

    Raises:
        Rejected: it cannot be opened or, inside, decoded.
        ShardError: PyAV is missing.
    """
    try:
        import av
    except ImportError:
        raise ShardError("videos need PyAV: pip install 'maskfeat-pipeline[video]'") from None
    av.logging.set_level(None)  # what is wrong is told once, by its reason
    try:
        options = {"format_whitelist": CONTAINERS}
        with av.open(io.BytesIO(data), metadata_errors="replace", container_options=options) as container:
            pictures = av.stream.Disposition.attached_pic
            streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
            if not streams:
                raise Rejected("no video", "has no video stream")
            stream = streams[0]
            if stream.codec_context is None:
                raise Rejected("unknown codec", "no decoder knows its codec")
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"err_detect": "explode"}
            yield container, stream
    except Rejected:
        raise
    except MemoryError:
        raise out_of_memory() from None
    except av.error.ArgumentError:
        raise Rejected("unknown container", "convert it to MP4, WebM, AVI or Matroska") from None
    except (av.error.FFmpegError, ValueError) as error:
        raise Rejected("corrupt", getattr(error, "strerror", None) or str(error) or type(error).__name__) from None


def suffix_of(container: "InputContainer") -> str:
    """Return the suffix of the kind of file that it is, whatever its name was. Raises Rejected for any other."""
    for kind, suffix in (("mp4", "mp4"), ("webm", "webm"), ("avi", "avi"), ("matroska", "mkv")):
        if kind in container.format.name.split(","):
            doc_type = container.format.name == "matroska,webm" and suffix == "webm"
            return "mkv" if doc_type and not _is_webm(container) else suffix
    raise Rejected("unknown container", f"is {container.format.name}: convert it to MP4, WebM, AVI or Matroska")


def _is_webm(container: "InputContainer") -> bool:
    return {stream.codec_context.codec.canonical_name for stream in container.streams.video} <= _HIDDEN_PACKETS


def _small(frame: "VideoFrame", side: int) -> Image.Image:
    scale = side / max(frame.height, frame.width)
    width, height = (max(1, round(length * scale)) for length in (frame.width, frame.height))
    return Image.fromarray(frame.to_ndarray(format="rgb24", width=width, height=height))


def _examine(container: "InputContainer", stream: "Stream", max_pixels: int) -> _Examined:
    """Decode all of a video. Raises Rejected, and what PyAV raises, where it cannot be trained on."""
    stamps, keys = list[int](), list[int]()
    rotations, sizes = set[int](), set[tuple[int, int]]()
    packets = 0
    for packet in container.demux(stream):
        packets += bool(packet.size) and not packet.is_discard
        if packet.is_corrupt:
            raise Rejected("corrupt", f"packet {packets} is damaged")
        for frame in packet.decode():
            sizes.add((frame.height, frame.width))
            if frame.height * frame.width > max_pixels:
                raise Rejected("too many pixels", f"{frame.width} x {frame.height}, more than {max_pixels}")
            if len(sizes) > 1:
                raise Rejected("changing size", f"frame {len(stamps)} has another size than those before it")
            if frame.is_corrupt:
                raise Rejected("corrupt", f"frame {len(stamps)} is damaged")
            if frame.pts is None or (stamps and frame.pts <= stamps[-1]):
                raise Rejected("bad time stamps", f"frame {len(stamps)} is not later than the one before it")
            if frame.key_frame:
                keys.append(len(stamps))
            stamps.append(frame.pts)
            rotations.add(int(frame.rotation))
    if not stamps:
        raise Rejected("no frames", "none of its frames can be decoded")
    if len(stamps) < packets and stream.codec_context.codec.canonical_name not in _HIDDEN_PACKETS:
        raise Rejected("missing frames", f"{packets} frames are in the file, but {len(stamps)} can be decoded")
    ((height, width),) = sizes
    return _Examined(height, width, rotations.pop(), _described(stream, stamps, keys))


def _described(stream: "Stream", stamps: list[int], keys: list[int]) -> VideoStream:
    """Describe a decoded stream in the columns of the manifest."""
    steps = {later - earlier for earlier, later in pairwise(stamps)}
    base = Fraction(stream.time_base or 1)
    nominal = Fraction(stream.average_rate or stream.base_rate or 25)
    last = 1 / nominal / base if not steps else Fraction(stamps[-1] - stamps[0], len(stamps) - 1)
    duration = (stamps[-1] - stamps[0] + last) * base  # the last frame is shown as long as the others on average
    rate = (Fraction(len(stamps)) / duration).limit_denominator(100_000)
    constant = len(steps) <= 1
    pixels: Any = stream.codec_context.format
    return VideoStream(
        frames=len(stamps),
        fps_num=rate.numerator,
        fps_den=rate.denominator,
        duration=float(duration),
        codec=stream.codec_context.codec.canonical_name,
        pix_fmt=pixels.name,
        time_base_num=base.numerator,
        time_base_den=base.denominator,
        pts_start=stamps[0] if constant else None,
        pts_step=(steps.pop() if steps else int(last)) if constant else None,
        pts=None if constant else stamps,
        key_frames=keys,
        key_offsets=None,
    )
