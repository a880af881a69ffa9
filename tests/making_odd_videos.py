"""Video files as they are found in the wild and worse, each with its expected result."""

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import av
import numpy as np
from av.packet import Packet
from making_images import encoded as encoded_image
from making_images import picture
from making_videos import OPTIONS, encoded, film, kinds

Odd = dict[str, tuple[bytes, str]]  # by name: the file, and `kept`, `encoded` or the reason for its rejection
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"
_TKHD_MATRIX = 44  # bytes from the name of the box to its matrix


def odd_videos() -> Odd:
    """All of them."""
    sound = {name: (data, "kept") for name, data in kinds().items()}
    found = {name: (data, outcome) for part in (_sound, _refused, _damaged) for name, data, outcome in part()}
    return sound | found


def rotated(data: bytes, turn: Sequence[float] = (0, 1, -1, 0)) -> bytes:
    """An MP4 file that says to turn its frames: by a quarter, clockwise, or by a matrix a, b, c, d."""
    a, b, c, d = (round(value * 65536) for value in turn)
    place = data.index(b"tkhd") + _TKHD_MATRIX
    return data[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[place + 36 :]


def remuxed(
    data: bytes, container: str = "mp4", change: Callable[[list[Packet]], list[Packet]] = lambda packets: packets
) -> bytes:
    """The packets of a video, after a change, in a new file."""
    file = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(file, "w", format=container) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in change([packet for packet in source.demux(video=0) if packet.size]):
            packet.stream = stream
            target.mux(packet)
    return file.getvalue()


def with_cover_first(data: bytes) -> bytes:
    """An H.264 file with a cover, of which FFmpeg makes the first stream, since it stands before that of the video."""
    file = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(file, "w", format="mp4") as target:
        cover = target.add_stream("mjpeg")
        cover.height, cover.width, cover.pix_fmt = 48, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in [Packet(encoded_image(picture(0), "JPEG")), *source.demux(video=0)]:
            if packet.size:
                packet.stream = cover if packet.stream is None else stream
                target.mux(packet)
    made = file.getvalue()
    moov = made.index(b"moov") - 4
    header, place = made[moov : moov + 8], moov + 8
    boxes = []
    while place < len(made):
        (size,) = struct.unpack_from(">I", made, place)
        boxes.append(made[place : place + size])
        place += size
    boxes.sort(key=lambda box: box[4:8] == b"trak")
    return made[:moov] + header + b"".join(boxes)


def of_two_streams(first: np.ndarray, second: np.ndarray) -> bytes:
    """A VP9 file with two videos."""
    file = io.BytesIO()
    films = [encoded(pixels, "libvpx-vp9", "webm") for pixels in (first, second)]
    with ExitStack() as stack:
        target = stack.enter_context(av.open(file, "w", format="webm"))
        sources = [stack.enter_context(av.open(io.BytesIO(data))) for data in films]
        streams = [target.add_stream_from_template(source.streams.video[0]) for source in sources]
        for source, stream in zip(sources, streams, strict=True):
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
    return file.getvalue()


def all_marked_as_key_frames(packets: list[Packet]) -> list[Packet]:
    """The packets, of which each claims to be decoded without those before."""
    for packet in packets:
        packet.is_keyframe = True
    return packets


def with_sound(pixels: np.ndarray | None, container: str = "mp4") -> bytes:
    """An H.264 video, or none, beside half a second of silence."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as target:
        sound = target.add_stream("aac", rate=16_000)
        if pixels is not None:
            stream = target.add_stream("libx264", rate=25)
            stream.height, stream.width = pixels.shape[1:3]
            stream.pix_fmt, stream.options, stream.thread_count = "yuv420p", OPTIONS["libx264"], 1
            for image in pixels:
                target.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            target.mux(stream.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16_000
        target.mux(sound.encode(silence))
        target.mux(sound.encode(None))
    return file.getvalue()


def changing_size() -> bytes:
    """A VP9 video of which the second half is larger."""
    file = io.BytesIO()
    small, large = (encoded(film(10, *size), "libvpx-vp9", "webm", lag_in_frames=0) for size in ((48, 64), (64, 80)))
    with av.open(file, "w", format="webm") as target:
        stream = None
        for part, data in enumerate((small, large)):
            with av.open(io.BytesIO(data)) as source:
                stream = stream or target.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.stream, packet.pts, packet.dts = stream, packet.pts + 400 * part, packet.dts + 400 * part
                        target.mux(packet)
    return file.getvalue()


Found = Iterator[tuple[str, bytes, str]]


def _sound() -> Found:
    plain = encoded(film(20), g=8, bf=0)
    yield "with sound.mp4", with_sound(film(20)), "kept"
    yield "bytes behind the end.mp4", plain + b"more of something", "kept"
    yield "named wrongly.avi", plain, "kept"
    yield "WebM by a stream.webm", encoded(film(20), "libvpx-vp9", "webm", muxing={"live": "1"}), "kept"
    yield "frames that are not coded.avi", remuxed(encoded(film(20), "mpeg4", "avi", g=12), "avi", _uncoded), "kept"
    yield "a gap.mkv", remuxed(plain, "matroska", lambda packets: packets[:8] + packets[16:]), "kept"
    yield "a quarter turn.mp4", rotated(plain), "encoded"
    yield "upside down.mp4", rotated(plain, (-1, 0, 0, -1)), "encoded"
    yield "mirrored.mp4", rotated(plain, (-1, 0, 0, 1)), "encoded"
    yield "a cover first.mp4", with_cover_first(plain), "kept"
    yield "two streams.webm", of_two_streams(film(5, 32, 32), film(20)), "encoded"
    mpeg4 = [encoded(film(20), "mpeg4", container, g=20) for container in ("mp4", "avi")]
    yield "false key frames.mp4", remuxed(mpeg4[0], change=all_marked_as_key_frames), "encoded"
    yield "false key frames in the index.avi", remuxed(mpeg4[1], "avi", all_marked_as_key_frames), "kept"
    hours = [3_600_000 * number for number in range(20)]
    yield "a frame an hour.mkv", encoded(film(20), container="matroska", stamps=hours), "kept"


def _refused() -> Found:
    plain, pixels = encoded(film(20)), film(20)
    yield "turned a little.mp4", rotated(plain, (0.8, 0.6, -0.6, 0.8)), "rotation"
    yield "10 bits.mp4", encoded(pixels, "libx265", pix_fmt="yuv420p10le"), "10-bit"
    yield "12 bits.mp4", encoded(pixels, "libx265", pix_fmt="yuv444p12le"), "12-bit"
    yield "H.264 of 4:4:4.mp4", encoded(pixels, pix_fmt="yuv444p"), "not 4:2:0"
    yield "MJPEG of 4:2:2.avi", encoded(pixels, "mjpeg", "avi", pix_fmt="yuvj422p"), "not 4:2:0"
    yield "uncompressed.avi", encoded(pixels, "rawvideo", "avi", pix_fmt="bgr24"), "not 4:2:0"
    yield "changing size.webm", changing_size(), "changing size"
    yield "sound alone.mp4", with_sound(None), "no video"
    yield "sound alone.mkv", with_sound(None, "matroska"), "no video"
    yield "a codec that nobody knows.mp4", plain.replace(b"avc1", b"zzz9"), "unknown codec"
    yield "a playlist.mp4", PLAYLIST, "not a video"
    yield "a page of HTML.mp4", b"<html><body>502 Bad Gateway</body></html>" * 9, "not a video"
    yield "zeros.mp4", bytes(5000), "not a video"
    yield "a pdf.mp4", b"%PDF-1.7" + bytes(999), "PDF"
    yield "empty.mp4", b"", "empty"
    yield "an image.mp4", encoded_image(picture(0), "JPEG"), "not a video"
    yield "an MPEG stream.mp4", encoded(pixels, "mpeg2video", "mpegts"), "not a video"


def _damaged() -> Found:
    plain, other = encoded(film(40), g=8, bf=0), encoded(film(40), "libvpx-vp9", "webm", g=8)
    mpeg4, mjpeg = encoded(film(40), "mpeg4", "avi"), encoded(film(40), "mjpeg", "avi", pix_fmt="yuvj420p")
    quick = encoded(film(40), muxing={"moov_size": "4000"})
    fragments = encoded(film(40), g=8, muxing={"movflags": "frag_keyframe+empty_moov"})
    for name, data in {
        "mp4": plain,
        "quick.mp4": quick,
        "fragments.mp4": fragments,
        "avi": mpeg4,
        "webm": other,
    }.items():
        for share in (0.3, 0.6, 0.95):
            yield f"cut at {share}.{name}", data[: int(share * len(data))], "corrupt"
    matroska = encoded(film(40), container="matroska")
    yield "cut.mkv", matroska[: len(matroska) // 2], "corrupt"
    yield "the end of it only.mp4", plain[len(plain) // 2 :], "not a video"
    yield "zeros within.mp4", _zeros(plain), "corrupt"
    yield "zeros within.avi", _zeros(mjpeg), "missing frames"
    yield "other bytes within.mp4", _noise(plain), "corrupt"
    yield "other bytes within HEVC.mp4", _noise(encoded(film(40, 96, 128), "libx265", g=8)), "corrupt"
    yield "other bytes within AV1.mp4", _noise(encoded(film(40), "libsvtav1", g=8)), "corrupt"
    yield "without its index.mp4", plain[: plain.index(b"moov") - 4], "corrupt"
    yield "header alone.mp4", quick[: quick.index(b"mdat") - 4], "no frames"
    yield "no key frame.mp4", remuxed(plain, change=lambda packets: packets[1:]), "no key frame"
    yield "no key frame.mkv", remuxed(plain, "matroska", lambda packets: packets[1:]), "no key frame"


def _uncoded(packets: list[Packet]) -> list[Packet]:
    """The packets of MPEG-4 with three of no contents, which repeat the frame before them."""
    for packet in packets[3:6]:
        bits = int.from_bytes(bytes(packet)[4:7], "big")  # type, seconds, marker, 5 bits of time, marker, coded or not
        empty = Packet(bytes(packet)[:4] + (bits & ~((1 << 14) - 1) | 1 << 12).to_bytes(3, "big"))
        empty.pts, empty.dts, empty.time_base = packet.pts, packet.dts, packet.time_base
        packets[packets.index(packet)] = empty
    return packets


def _zeros(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[: middle - 700] + bytes(1400) + data[middle + 700 :]


def _noise(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[: middle - 200] + np.random.default_rng(0).bytes(400) + data[middle + 200 :]
