"""PNG files chunk by chunk."""

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, body: bytes = b"", crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) if crc is None else crc)
    )


def ihdr(
    pixels: np.ndarray,
    *,
    height: int | None = None,
    bits: int = 8,
    compression: int = 0,
    filters: int = 0,
    interlaced: int = 0,
) -> bytes:
    rows, width, *channels = pixels.shape
    fields = (width, rows if height is None else height, bits, 2 if channels else 0, compression, filters, interlaced)
    return chunk(b"IHDR", struct.pack(">IIBBBBB", *fields))


def rows(pixels: np.ndarray) -> bytes:
    """The pixels as a PNG compresses them, without filters."""
    lines = pixels.reshape(len(pixels), -1)
    return np.concatenate([np.zeros((len(lines), 1), np.uint8), lines], axis=1).tobytes()


def idat(pixels: np.ndarray) -> bytes:
    return chunk(b"IDAT", zlib.compress(rows(pixels)))


IEND = chunk(b"IEND")


def png(pixels: np.ndarray, before: bytes = b"", after: bytes = b"") -> bytes:
    """A plain PNG with these chunks before and after its pixels."""
    return SIGNATURE + ihdr(pixels) + before + idat(pixels) + after + IEND


def interlaced_png(pixels: np.ndarray) -> bytes:
    """The same, interlaced, as Pillow writes none."""
    starts = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    passes = b"".join(rows(pixels[y::down, x::across]) for y, x, down, across in starts)
    return SIGNATURE + ihdr(pixels, interlaced=1) + chunk(b"IDAT", zlib.compress(passes)) + IEND
