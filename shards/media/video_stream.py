"""Open the video stream of a file in memory strictly, by PyAV; decode it in full, and describe it for the manifest."""

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import google_crc32c

from shards.files import ShardError
from shards.media.containers import missing_bytes
from shards.media.kinds import kind_of
from shards.media.media import Rejected, VideoStream, out_of_memory

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream as Stream

# A closed list: FFmpeg would also open playlists, which refer to other files and addresses.
CONTAINERS = "mov,matroska,avi"
READ = "MP4, QuickTime, WebM, Matroska or AVI"
_LARGEST = 2**31 - 1  # in a column of int32
_MOST_FRAMES = 1_000_000  # nine hours at 30 per second; their time stamps fit in memory
# Codecs whose packets may not give a frame: some are only references, others repeat the frame before
_SILENT_PACKETS = frozenset({"vp8", "vp9", "av1", "mpeg4", "msmpeg4v3"})
_UPRIGHT = (1, 0, 0, 1)


@dataclass(frozen=True)
class Examined:
    """A valid video: the size of its frames as coded, and its stream.

    `plain` says whether every reader shows it alike: it is neither rotated nor mirrored, the file has one video stream
    only, and the frames marked as key frames are key frames. `sound` says whether the file has an audio stream, and
    `reordered` whether frames are coded in another order than they are displayed in.
    """

    height: int
    width: int
    stream: VideoStream
    plain: bool
    sound: bool
    reordered: bool


@contextmanager
def opened(data: bytes) -> Iterator[tuple["InputContainer", "Stream"]]:
    """Open the first video stream of a file in memory, on one thread; any damage is an error.

    Raises:
        Rejected: it cannot be opened or, inside the context, decoded.
        ShardError: PyAV is missing.
    """
    try:
        import av
    except ImportError:
        raise ShardError("videos need PyAV: pip install 'maskfeat-pipeline[video]'") from None
    av.logging.set_level(None)  # errors are reported once, as the reason of the rejection
    options = {"format_whitelist": CONTAINERS}
    try:
        with av.open(io.BytesIO(data), metadata_errors="replace", container_options=options) as container:
            streams = video_streams(container)
            if not streams:
                raise Rejected("no video", "has no video stream")
            stream = streams[0]
            if stream.codec_context is None:
                raise Rejected("unknown codec", "FFmpeg has no decoder of its video stream")
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"err_detect": "explode"}
            yield container, stream
    except MemoryError:
        raise out_of_memory() from None
    except (av.error.FFmpegError, ValueError, OverflowError) as error:
        raise _unreadable(data, getattr(error, "strerror", None) or str(error) or type(error).__name__) from None


def video_streams(container: "InputContainer") -> list["Stream"]:
    """Return the video streams of a file, the first of which is used, without attached pictures such as a cover."""
    import av

    pictures = av.stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & pictures]


def display_matrix(frame: "VideoFrame") -> tuple[int, int, int, int] | None:
    """Return the signs of the matrix a, b, c, d that maps x, y in a frame to a x + c y, b x + d y on display.

    None where it is not composed of quarter turns and mirrors. Scales are ignored.
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return _UPRIGHT
    a, b, _, c, d = ((number > 0) - (number < 0) for number in struct.unpack_from("=5i", bytes(matrix)))
    return (a, b, c, d) if abs(a) + abs(b) + abs(c) + abs(d) == 2 and a * d != b * c else None


def suffix_of(container: "InputContainer") -> str:
    """Return the suffix of the file's actual format, whatever its name was."""
    kinds = container.format.name.split(",")
    if "matroska" in kinds:
        codecs = {
            stream.codec_context and stream.codec_context.codec.canonical_name for stream in container.streams.video
        }
        return "webm" if codecs <= {"vp8", "vp9", "av1"} else "mkv"
    return "avi" if "avi" in kinds else "mp4"


def examine(
    data: bytes,
    container: "InputContainer",
    stream: "Stream",
    max_pixels: int,
    take: Callable[["VideoFrame"], None] = lambda frame: None,
) -> Examined:
    """Decode all of a video. Raises Rejected, and PyAV's errors, where it cannot be used for training.

    Args:
        data: the file.
        container, stream: those of the file, from `opened`.
        max_pixels: the limit for a frame.
        take: called with each frame, in display order.
    """
    if missing := missing_bytes(data):
        raise Rejected("corrupt", f"is cut off: {missing} bytes are missing at its end")
    _refuse_large(stream.codec_context.height, stream.codec_context.width, max_pixels)
    stamps, keys = list[int](), set[int]()  # of displayed frames, in that order
    marked = set[int]()  # time stamps of the frames marked as key frames, displayed or not
    sizes, matrices, formats = set[tuple[int, int]](), set[tuple[int, int, int, int] | None](), set[str]()
    packets = shown = 0
    for packet in container.demux(stream):
        if not packets and packet.size and not packet.is_keyframe:
            raise Rejected("no key frame", "does not begin with a key frame, so its first frames cannot be decoded")
        packets += bool(packet.size)
        shown += bool(packet.size) and not packet.is_discard
        if packet.is_corrupt:
            raise Rejected("corrupt", f"packet {packets - 1} is damaged")
        if packet.is_keyframe and packet.pts is not None:
            marked.add(packet.pts)
        for frame in packet.decode():
            number = len(stamps)
            _refuse_large(frame.height, frame.width, max_pixels)
            sizes.add((frame.height, frame.width))
            formats.add(frame.format.name)
            if len(sizes) > 1 or len(formats) > 1:
                raise Rejected("changing size", f"frame {number} has another size or format than those before it")
            if frame.is_corrupt:
                raise Rejected("corrupt", f"frame {number} is damaged")
            if frame.pts is None or (stamps and frame.pts <= stamps[-1]):
                raise Rejected("bad time stamps", f"frame {number} is not later than the one before it")
            if number == _MOST_FRAMES:
                raise Rejected("too many frames", f"more than {_MOST_FRAMES:,}")
            stamps.append(frame.pts)
            matrices.add(display_matrix(frame))
            if frame.key_frame:
                keys.add(frame.pts)
            take(frame)
    if not stamps:
        raise Rejected("no frames", "none of its frames can be decoded")
    lost = max(shown - len(stamps), stream.frames - packets)  # the header of WebM does not have `frames`: 0
    if lost > 0 and _codec(stream) not in _SILENT_PACKETS:
        raise Rejected("missing frames", f"{lost} of {len(stamps) + lost} frames of the file cannot be decoded")
    if len(matrices) > 1 or None in matrices:
        raise Rejected("rotation", "has a rotation other than quarter turns")
    ((height, width),), (pixels,) = sizes, formats
    return Examined(
        height,
        width,
        stream=_described(stream, stamps, marked, pixels),
        plain=matrices == {_UPRIGHT} and len(video_streams(container)) == 1 and not marked & set(stamps) - keys,
        sound=bool(container.streams.audio),
        reordered=bool(stream.codec_context.has_b_frames),
    )


def indexed(data: bytes, container: "InputContainer", stream: "Stream") -> VideoStream | None:
    """Describe a video that `examine` has accepted by its packets, without decoding it; None if they are not enough.

    For Motion JPEG, that includes the positions of the JPEGs, if they are contiguous. Arguments are as for `examine`.
    """
    stamps, keys, places = list[int](), set[int](), list[tuple[int, int]]()
    for packet in container.demux(stream):
        if packet.size and not packet.is_discard:
            if packet.pts is None:
                return None
            stamps.append(packet.pts)
            places.append((packet.pos or 0, packet.size))
            if packet.is_keyframe:
                keys.add(packet.pts)
    pixels: Any = stream.codec_context.format
    if pixels is None or not stamps or _codec(stream) in _SILENT_PACKETS or len(set(stamps)) < len(stamps):
        return None
    described = _described(stream, sorted(stamps), keys, pixels.name)
    return _with_jpegs(described, data, places) if _codec(stream) == "mjpeg" else described


def _with_jpegs(video: VideoStream, data: bytes, places: list[tuple[int, int]]) -> VideoStream:
    """Add the positions of the frames of a video, by offset and size of each, if they are contiguous JPEGs."""
    if any(offset + size != following for (offset, size), (following, _) in pairwise(places)):
        return video
    return replace(
        video,
        jpeg_offset=places[0][0],
        jpeg_sizes=[size for _, size in places],
        jpeg_crc32c=[google_crc32c.value(data[offset : offset + size]) for offset, size in places],
    )


def _unreadable(data: bytes, why: str) -> Rejected:
    """Return the rejection of a file that FFmpeg cannot open or decode."""
    kind = kind_of(data)
    if missing := missing_bytes(data):
        return Rejected("corrupt", f"is cut off: {missing} bytes are missing at its end ({why})")
    if kind in (None, "video") and (kind or missing_bytes(data + bytes(8)) or data[4:8] in (b"moov", b"mdat")):
        return Rejected("corrupt", why)
    if kind is None:
        return Rejected("not a video", f"is not a readable {READ} file")
    return Rejected(kind, f"not a video; convert it to {READ}")


def _refuse_large(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise Rejected("too many pixels", f"{width} x {height} pixels, more than {max_pixels}")


def _codec(stream: "Stream") -> str:
    return str(stream.codec_context.codec.canonical_name)


def _described(stream: "Stream", stamps: list[int], keys: set[int], pixels: str) -> VideoStream:
    """Describe the displayed frames in the columns of the manifest; `keys` are the time stamps of key frames.

    Raises Rejected for a frame rate or a time base that the columns cannot hold.
    """
    steps = {later - earlier for earlier, later in pairwise(stamps)}
    base = Fraction(stream.time_base or 1)
    nominal = Fraction(stream.average_rate or stream.base_rate or 25)
    last = 1 / nominal / base if not steps else Fraction(stamps[-1] - stamps[0], len(stamps) - 1)
    duration = (stamps[-1] - stamps[0] + last) * base  # the last frame lasts as long as the others on average
    rate = (Fraction(len(stamps)) / duration).limit_denominator(100_000)
    if not 0 < rate.numerator <= _LARGEST or max(base.numerator, base.denominator) > _LARGEST:
        raise Rejected(
            "bad time stamps", f"{len(stamps)} frames in {float(duration):.3g} seconds are not a valid frame rate"
        )
    constant = len(steps) <= 1
    return VideoStream(
        frames=len(stamps),
        fps_num=rate.numerator,
        fps_den=rate.denominator,
        duration=float(duration),
        codec=_codec(stream),
        pix_fmt=pixels,
        time_base_num=base.numerator,
        time_base_den=base.denominator,
        pts_start=stamps[0] if constant else None,
        pts_step=(steps.pop() if steps else int(last)) if constant else None,
        pts=None if constant else stamps,
        key_frames=[number for number, stamp in enumerate(stamps) if stamp in keys],
        key_offsets=None,
    )
