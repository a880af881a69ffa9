"""Render images whose bytes are not kept: to the PNG or JPEG of their pixels, upright, as 8-bit grey or RGB."""

import io
from typing import Literal

import numpy as np
from PIL import Image, TiffImagePlugin
from PIL.Image import Resampling, Transpose

from shards.media.media import Checked, CheckOptions, Rejected

LONGEST_JPEG = 65_500  # pixels a side, as libraries read and write them

_BACKGROUNDS = {"white": (255, 255, 255, 255), "black": (0, 0, 0, 255)}
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_TIFF_BITS_PER_SAMPLE, _TIFF_SAMPLE_FORMAT = 258, 339
_UNSIGNED = 1  # of TIFF's sample formats


def render(image: Image.Image, turn: int, options: CheckOptions) -> Checked:
    """Return the pixels as a PNG or, with `options.resize`, as a JPEG whose short side is at most that.

    Args:
        image: as Pillow has it, of at most 8 bits a channel or, with `options.depth`, 16.
        turn: the EXIF orientation, 1 (upright) to 8.
        options: what is done with transparency, depth and size.

    Raises:
        Rejected: there is no single rendering of the image as 8-bit grey or RGB.
    """
    pixels = upright(_flatten(_of_8_bits(image, options), options), turn)
    if options.resize is None:
        return Checked(_encode(pixels, "PNG"), "png", pixels.height, pixels.width)
    pixels = pixels.convert("RGB")
    if min(pixels.size) > options.resize:
        scale = options.resize / min(pixels.size)
        size = (round(pixels.width * scale), round(pixels.height * scale))
        pixels = pixels.resize(size, Resampling.BICUBIC)
    if max(pixels.size) > LONGEST_JPEG:
        raise Rejected(
            "too many pixels", f"{pixels.width} x {pixels.height}, but a JPEG has at most {LONGEST_JPEG} a side"
        )
    return Checked(_encode(pixels, "JPEG"), "jpg", pixels.height, pixels.width)


def upright(pixels: Image.Image, turn: int) -> Image.Image:
    """Return an image turned as its EXIF orientation asks."""
    return pixels.transpose(_UPRIGHT[turn]) if turn in _UPRIGHT else pixels


def bits_per_channel(image: Image.Image, data: bytes) -> int:
    """Return the bits of a channel of an opened image other than JPEG and PNG, whose file is `data`.

    Pillow opens 48-bit colour as 8-bit RGB without a word, so the mode alone does not tell.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, ()), default=1)
    if image.format == "HEIF":
        return int(image.info.get("bit_depth", 8))
    if image.format == "AVIF" and (at := data.find(b"av1C")) >= 0:
        return {0: 8, 2: 10, 3: 12}.get(data[at + 6] >> 5 & 3, 8)  # high_bitdepth and twelve_bit
    if image.format == "JPEG2000" and (at := data.find(b"\xff\x4f\xff\x51")) >= 0:
        channels = int.from_bytes(data[at + 40 : at + 42], "big")
        return max((1 + (data[at + 42 + 3 * channel] & 127) for channel in range(channels)), default=8)
    return 16 if image.mode.startswith(("I", "F")) else 8


def _of_8_bits(image: Image.Image, options: CheckOptions) -> Image.Image:
    """Return the top 8 bits of what Pillow opens with more; of colour, Pillow itself has kept just these."""
    if options.depth != "scale" or not image.mode.startswith("I"):
        return image
    bits = 16  # as Pillow scales them, but for TIFF
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = max(image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, ()), default=bits)
        if image.tag_v2.get(_TIFF_SAMPLE_FORMAT, (_UNSIGNED,))[0] != _UNSIGNED:
            raise Rejected("colour space", "its numbers are signed, so they cannot be converted to grey")
    return Image.fromarray((np.asarray(image).astype(np.uint16) >> (bits - 8)).astype(np.uint8))


def _flatten(image: Image.Image, options: CheckOptions) -> Image.Image:
    """Return the image as grey ("L") or "RGB", which is lossless but for CMYK: inks have only a customary RGB."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if options.alpha in _BACKGROUNDS:
            rgba = Image.alpha_composite(Image.new("RGBA", rgba.size, _BACKGROUNDS[options.alpha]), rgba)
        elif options.alpha == "reject" and any(rgba.getchannel("A").histogram()[:255]):
            raise Rejected("transparent", "not fully opaque, so its colours depend on a background")
        return rgba.convert("RGB")
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("L", "RGB"):
        return image
    if image.mode in ("P", "CMYK", "YCbCr"):
        return image.convert("RGB")
    raise Rejected("colour space", f"mode {image.mode} cannot be converted to plain RGB")


def _encode(pixels: Image.Image, file_format: Literal["JPEG", "PNG"]) -> bytes:
    pixels.info = {}  # Pillow would copy colour profiles and comments that describe the original
    file = io.BytesIO()
    if file_format == "PNG":
        pixels.save(file, "PNG", compress_level=6)
    else:
        pixels.save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()
