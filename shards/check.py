"""Decides whether an image can be trained on, and in which bytes it is stored.

Every image is decoded in full once, strictly, so that no reader meets a damaged one. Bytes are kept where
every reader agrees on their pixels (8-bit JPEG and PNG); anything else is stored as lossless PNG or, with
`resize`, as JPEG. With the check `header`, the pixels of images whose bytes are kept are not looked at, so damaged
ones remain, and so do PNGs whose EXIF follows their pixels.
"""

import io
import warnings
from dataclasses import dataclass
from typing import Literal

from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from PIL.Image import Resampling, Transpose

from shards.exif import TURNED, orientation

# A closed list: Pillow would also open formats that run other programs (EPS) or lose bits without a word.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
DEFAULT_MAX_PIXELS = 100_000_000

Check = Literal["decode", "header"]

# Our own limit, which comes with a reason, replaces Pillow's.
Image.MAX_IMAGE_PIXELS = None

_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_TIFF_BITS_PER_SAMPLE = 258


@dataclass(frozen=True)
class Checked:
    """The bytes to store, the suffix that names their format, and the size in pixels after EXIF rotation."""

    data: bytes
    suffix: Literal["jpg", "png"]
    height: int
    width: int


class Rejected(Exception):
    """An image that cannot be used: a short `reason` to count by, and a `detail`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def check_image(data: bytes, max_pixels: int, resize: int | None, check: Check = "decode") -> Checked:
    """Checks one image file and returns what to store; see the module for what is kept and what converted.

    Args:
        data: the file's bytes.
        max_pixels: an image with more is not decoded.
        resize: shrink the short side to this many pixels where it is longer, and store every image as JPEG.
        check: `decode` all of it, or only its `header` where the bytes can be kept.

    Raises:
        Rejected: the image is damaged, or has no single 8-bit RGB or grey rendering.
    """
    if not data:
        raise Rejected("empty", "0 bytes")
    try:
        # What Pillow only warns of (odd metadata, palettes) does not touch the pixels.
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _check(image, data, max_pixels, resize, check)
    except (Rejected, MemoryError):
        raise
    except UnidentifiedImageError:
        raise Rejected("not an image", f"not a readable {', '.join(FORMATS)} file") from None
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged input
        raise Rejected("corrupt", str(error) or type(error).__name__) from None


def sides(data: bytes) -> tuple[int, int]:
    """Height and width in pixels, after EXIF rotation, that the header of an image kept by `check_image` tells.

    Raises Rejected where it has none.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            turned = image.format != "PNG" and orientation(image.info.get("exif", b"")) >= TURNED
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:  # as above
        raise Rejected("not an image", str(error) or type(error).__name__) from None


def thumbnail(data: bytes, side: int) -> bytes:
    """A small upright JPEG of an image that passed `check_image`, with at most `side` pixels a side."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        turn = orientation(image.info.get("exif", b""))
        image.draft("RGB", (2 * side, 2 * side))  # decodes a large JPEG at a fraction of its size
        image.thumbnail((side, side))
        pixels = image.convert("RGB")
    if turn in _UPRIGHT:
        pixels = pixels.transpose(_UPRIGHT[turn])
    file = io.BytesIO()
    pixels.save(file, "JPEG", quality=80)
    return file.getvalue()


def _check(image: Image.Image, data: bytes, max_pixels: int, resize: int | None, check: Check) -> Checked:
    if image.width * image.height > max_pixels:
        raise Rejected("too many pixels", f"{image.width} x {image.height} pixels, more than {max_pixels}")
    # A phone's MPO is a JPEG with a preview or a second eye behind it; every JPEG reader shows the first.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise Rejected("animated", "more than one frame")
    if _deeper_than_8_bits(image, data):
        raise Rejected("16-bit", f"more than 8 bits a channel (mode {image.mode})")
    if check == "decode":
        if image.format == "PNG":
            # load() does not compare the checksums of the pixel data, verify() does but spoils its image.
            with Image.open(io.BytesIO(data), formats=FORMATS) as copy:
                copy.verify()
        image.load()

    turn = orientation(image.info.get("exif", b""))
    shrink = resize is not None and min(image.size) > resize
    if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB") and not shrink:
        height, width = (image.width, image.height) if turn >= TURNED else (image.height, image.width)
        return Checked(data, "jpg", height, width)
    if _is_plain_png(image, data) and resize is None:
        return Checked(data, "png", image.height, image.width)

    pixels = _flatten(image)
    if turn in _UPRIGHT:
        pixels = pixels.transpose(_UPRIGHT[turn])
    if resize is None:
        return Checked(_encode(pixels, "PNG"), "png", pixels.height, pixels.width)
    pixels = pixels.convert("RGB")
    if shrink:
        scale = resize / min(pixels.size)
        size = (round(pixels.width * scale), round(pixels.height * scale))
        pixels = pixels.resize(size, Resampling.BICUBIC)
    return Checked(_encode(pixels, "JPEG"), "jpg", pixels.height, pixels.width)


def _deeper_than_8_bits(image: Image.Image, data: bytes) -> bool:
    """Pillow opens 48-bit colour as 8-bit RGB without a word, so the mode alone does not tell."""
    if image.format == "PNG":
        return data[24] > 8
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return any(bits > 8 for bits in image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, ()))
    return image.mode.startswith(("I", "F"))


def _is_plain_png(image: Image.Image, data: bytes) -> bool:
    """8-bit grey or RGB, without transparency and without EXIF: not every reader would turn a PNG by it."""
    bits, colour = data[24], data[25]
    eight_bit = image.format == "PNG" and bits == 8 and colour in (0, 2)
    return eight_bit and "exif" not in image.info and not image.has_transparency_data


def _flatten(image: Image.Image) -> Image.Image:
    """The image as grey ("L") or "RGB", which is lossless but for CMYK: inks have only a customary RGB."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if any(rgba.getchannel("A").histogram()[:255]):
            raise Rejected("transparent", "not fully opaque, so its colours depend on a background")
        return rgba.convert("RGB")
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("L", "RGB"):
        return image
    if image.mode in ("P", "CMYK", "YCbCr"):
        return image.convert("RGB")
    raise Rejected("colour space", f"mode {image.mode} has no plain RGB")


def _encode(pixels: Image.Image, file_format: Literal["JPEG", "PNG"]) -> bytes:
    pixels.info = {}  # Pillow would copy colour profiles and comments that describe the original
    file = io.BytesIO()
    if file_format == "PNG":
        pixels.save(file, "PNG", compress_level=6)
    else:
        pixels.save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()
