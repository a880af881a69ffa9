"""Parse JPEG files and decode their pixels strictly: damage that libjpeg pads and only warns of is an error here.

Neither Pillow nor DALI reports such warnings, so a file that lost half of its data would pass as grey. JPEG does not
have checksums: damage that decodes to the right number of pixels cannot be told from an unusual picture.
"""

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from shards.media.exif import orientation
from shards.media.media import Rejected

SIGNATURE = b"\xff\xd8"  # the marker that starts an image

_DHT, _DAC, _EOI, _SOS, _DQT, _DNL, _DRI = 0xC4, 0xCC, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD
_APP0, _APP1, _APP14, _COM = 0xE0, 0xE1, 0xEE, 0xFE
_TABLES, _OTHERS = {_DHT, _DAC, _DQT, _DNL, _DRI}, {_SOS, _EOI, *range(_APP0, 0xF0), _COM}
# The coding processes, by the markers of their frame headers
_HUFFMAN, _PROGRESSIVE, _LOSSLESS = {0xC0, 0xC1}, {0xC2, 0xCA}, {0xC3}
_SEQUENTIAL = {*_HUFFMAN, 0xC9}
_READABLE = _SEQUENTIAL | _PROGRESSIVE | _LOSSLESS
_UNREADABLE = dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical JPEG") | {
    0xCB: "lossless JPEG",
    0xF7: "JPEG-LS",
}
_REMEDY = "convert it to a baseline JPEG or to PNG"
_MAX_SCANS = 100  # programs write about 10, DALI gives up at 257, and each takes a second in a large image

_MAX_SEGMENTS = 10_000  # in a row: colour profiles and the like have about a hundred

_FILL = re.compile(rb"\xff+")  # several of these may precede a marker
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)  # among pixels: neither an escaped 255 nor a restart
_LEFT_OVER = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
_BUFFER = 8  # bytes that the decoder may have read ahead, and does not report as left over
_ZEROS = bytes(32)
_ALL = bytes((0, 63, 0))  # of a block: all coefficients, to the last bit

_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"  # followed by a byte for the colour space


@dataclass(frozen=True)
class Header:
    """The part of a file before the pixels: the size as stored, and the orientation (1 to 8).

    `plain` is False for images that DALI does not show as other readers do: inks, losslessly coded grey, and images
    with two EXIF blocks of different orientations, of which DALI follows one and OpenCV, within DALI, the other.
    """

    height: int
    width: int
    orientation: int
    plain: bool
    _process: int
    _components: bytes  # three bytes each: name, sampling factors, quantisation table
    _start: bytes  # of a file with the same pixels, without metadata that libjpeg warns of


def read_header(data: bytes) -> Header:
    """Read a JPEG file up to its pixels. Raises Rejected for a damaged file and for an unsupported kind."""
    frame, start, adobe, turns = b"", SIGNATURE, None, list[int]()
    for marker, begin, end in _segments(data, len(SIGNATURE)):
        body = data[begin + 4 : end]
        if marker in _UNREADABLE:
            raise Rejected(_UNREADABLE[marker], _REMEDY)
        if marker in _READABLE:
            if frame or len(body) < 6 or len(body) != 6 + 3 * body[5]:
                raise _corrupt("it has two frame headers" if frame else "its frame header is damaged")
            frame = data[end - len(body) - 4 : end]
        elif marker == _APP0 and body.startswith(b"JFIF\0") and len(body) >= 14:
            start = SIGNATURE + _JFIF
        elif marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
            adobe = body[11]
        elif marker == _APP1 and body.startswith(b"Exif\0\0"):
            turns.append(orientation(body))
    if not frame or marker == _EOI:
        raise _corrupt("it has no pixels")
    process, bits, height, width, components = struct.unpack_from(">xBxxBHHB", frame)
    if bits != 8:
        raise Rejected(f"{bits}-bit", f"a JPEG of {bits} bits a channel; {_REMEDY}")
    if components not in (1, 3, 4):
        raise Rejected("colour space", f"a JPEG of {components} components")
    if not height * width:
        raise _corrupt(f"its header says {width} x {height} pixels")
    if adobe is not None:
        usual = 2 if components == 4 else 1  # the default of decoders for unknown numbers
        start += _ADOBE + bytes([usual if adobe else 0])
    shown = components == 3 or (components == 1 and process not in _LOSSLESS)
    return Header(
        height, width, turns[0] if turns else 1, shown and len({*turns}) < 2, process, frame[10:], start + frame
    )


def stripped(data: bytes, header: Header) -> bytes:
    """Return the file without the parts that its pixels do not depend on. Raises Rejected where they are incomplete."""
    return header._start + b"".join(_pixels(data, header))


def decode(data: bytes, header: Header) -> NDArray[np.uint8]:
    """Return the pixels as stored, (height, width) grey or (height, width, 3) RGB. Inks become RGB as Pillow does it.

    Raises:
        Rejected: some of them are missing or damaged, as far as the file tells.
    """
    if header._process in _HUFFMAN and 4 * len(data) < _blocks(header):  # a block has at least two bits
        raise _corrupt(f"it is too small for {header.width} x {header.height} pixels")
    stream = stripped(data, header)
    channels = {1: "GRAY", 3: "RGB", 4: "CMYK"}[len(header._components) // 3]
    try:
        pixels = simplejpeg.decode_jpeg(stream, channels)
    except ValueError as error:
        message = str(error)
        left_over = _LEFT_OVER.fullmatch(message)
        filled = len(stream) - 2 - len(stream[:-2].rstrip(b"\0"))
        if "color conversion" in message:
            raise Rejected("lossless JPEG", f"its colours are not stored as red, green and blue; {_REMEDY}") from None
        if "subsampling" in message:  # such as 4:1:0, which simplejpeg does not know
            return _as_pillow_shows(stream)
        # Some cameras pad with zeros before the end marker. Other left-over bytes, or zeros of which some were decoded
        # as pixels, mean that the data before them are damaged.
        if left_over is None or not 0 <= filled - int(left_over[1]) <= _BUFFER:
            raise _corrupt(message) from None
        pixels = simplejpeg.decode_jpeg(stream, channels, strict=False)
    return _as_pillow_shows(stream) if channels == "CMYK" else pixels.squeeze(2) if channels == "GRAY" else pixels


def _blocks(header: Header) -> float:
    """Return the number of 8 x 8 blocks of the largest component, at least."""
    factors = [(factor >> 4, factor & 15) for factor in header._components[1::3]]
    most = max(across for across, _ in factors) * max(down for _, down in factors)
    largest = max(across * down for across, down in factors)
    return header.width / 8 * header.height / 8 * largest / max(most, 1)


def _as_pillow_shows(stream: bytes) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(stream), formats=["JPEG"]) as image:
            return np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise _corrupt(str(error)) from None


def _pixels(data: bytes, header: Header) -> Iterator[bytes]:
    """Yield the parts that pixels depend on, after the frame header. Raises Rejected for missing or zeroed scans."""
    at, scans = len(SIGNATURE), 0
    missing = {component: bytearray(b"\1" * 64) for component in header._components[::3]}  # bits of each coefficient
    zeros_end_blocks: dict[int, bool] = {}  # by the number of the Huffman table
    while True:
        for marker, begin, end in _segments(data, at):
            if marker in _TABLES:
                yield data[begin:end]
            elif marker not in _OTHERS and (scans or marker != header._process):
                raise _corrupt(f"a marker of number {marker} at byte {begin}, where none can be")
            if marker == _DHT:
                zeros_end_blocks.update(_zeros_end_blocks(data[begin + 4 : end]))
        if marker == _EOI:
            if any(map(any, missing.values())):
                raise _corrupt("some of its scans are missing")
            yield data[begin:end]
            return
        scan = data[begin + 4 : end]
        if not scan or len(scan) != 4 + 2 * scan[0]:
            raise _corrupt("the header of a scan is damaged")
        scans += 1
        if scans > _MAX_SCANS:
            raise _corrupt(f"it has more than {_MAX_SCANS} scans")
        part = _ALL if header._process in _SEQUENTIAL else scan[-3:]  # others are meaningless there
        first, last, bits = part if header._process in _PROGRESSIVE else _ALL
        for component in scan[1:-3:2]:
            if component in missing:
                missing[component][first : last + 1] = bytes([bits & 15]) * (last + 1 - first)
        found = _MARKER.search(data, end)
        if found is None:
            raise _corrupt("it is cut off: it has no end marker")
        at = found.start()
        coded = data[end:at]
        zeros_are_data = not all(zeros_end_blocks.get(table & 15, True) for table in scan[2:-3:2])
        if header._process in _HUFFMAN and zeros_are_data and _ZEROS in coded.rstrip(b"\0"):
            raise _corrupt("a block of zeros among its pixels")
        yield data[begin : end - 3] + part + coded


def _zeros_end_blocks(tables: bytes) -> Iterator[tuple[int, bool]]:
    """Yield for each AC table of a DHT segment its number, and whether zeros mean the end of a block.

    Where they do not, as in the usual tables, a run of zeros is a block in which all coefficients are equal, which does
    not occur in a picture.
    """
    at = 0
    while at + 17 < len(tables):
        if tables[at] >> 4 == 1:
            yield tables[at] & 15, tables[at + 17] == 0
        at += 17 + sum(tables[at + 1 : at + 17])


def _segments(data: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """Yield marker, begin and end of each segment from `at` on, up to a scan's header or the end of the image."""
    for _ in range(_MAX_SEGMENTS):
        fill = _FILL.match(data, at)
        if fill is None and at < len(data):
            raise _corrupt(f"no marker at byte {at}, where one is required")
        if fill is None or fill.end() == len(data):
            raise _corrupt("it is cut off in its header")
        at = fill.end() - 1
        marker = data[at + 1]
        if marker == _EOI:
            yield marker, at, at + 2
            return
        if marker < 0xC0 or 0xD0 <= marker < _EOI:
            raise _corrupt(f"a marker of number {marker} at byte {at}, where none can be")
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if end > len(data) or end < at + 4:
            raise _corrupt("it is cut off in its header" if end > len(data) else f"an empty segment at byte {at}")
        yield marker, at, end
        if marker == _SOS:
            return
        at = end
    raise _corrupt(f"it has more than {_MAX_SEGMENTS} segments in a row")


def _corrupt(detail: str) -> Rejected:
    return Rejected("corrupt", detail)
