"""Check whether an image can be used for training, and choose the bytes to store.

Every image is decoded in full once, strictly, so that no damaged one reaches a reader. Bytes are kept where
every reader agrees on their pixels (8-bit JPEG and PNG); anything else is stored as lossless PNG or, with
`resize`, as JPEG. With the check `header`, images whose bytes are kept are not decoded, so damaged
ones remain, and so do PNGs whose EXIF follows their pixels.
"""

import io
import warnings
from contextlib import suppress
from typing import Literal

from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from PIL.Image import Resampling, Transpose

from shards.media import jpeg, png
from shards.media.exif import TURNED, orientation
from shards.media.kinds import kind_of
from shards.media.media import DEFAULT_MAX_PIXELS, Checked, CheckOptions, Rejected, out_of_memory, refuse_huge

# A closed list: Pillow would also open formats that run other programs (EPS) or lose bits silently.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
_CONVERTED = FORMATS[2:]
_LONGEST_JPEG, _LONGEST_PNG = 65_500, 1_000_000  # pixels per side that the libraries read and write

# Replaced by our own limit, which gives a reason.
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


class ImageMedia:
    """Still images: JPEG, PNG and the like, as 8-bit grey or RGB."""

    name = "image"
    kept = frozenset({"jpg", "jpeg", "jpe", "jfif", "png"})
    suffixes = kept | {"webp", "bmp", "tif", "tiff", "gif"}
    changed = "is not an intact 8-bit grey or RGB JPEG, or such a PNG without transparency and EXIF"

    def check(self, data: bytes, options: CheckOptions) -> Checked:
        """Check one image file and return the sample to store; the module says what is kept and what is converted.

        Raises:
            Rejected: the image is damaged, or has no single 8-bit RGB or grey rendering.
        """
        if not data:
            raise Rejected("empty", "0 bytes")
        refuse_huge(len(data))
        try:
            if data.startswith(jpeg.SIGNATURE):
                return _check_jpeg(data, options)
            if data.startswith(png.SIGNATURE):
                return _check_png(data, options)
            return _check_other(data, options)
        except Rejected:
            raise
        except UnidentifiedImageError:
            kind = kind_of(data)
            if kind in FORMATS:
                raise Rejected("corrupt", f"begins as {kind}, but the rest is damaged or missing") from None
            if kind == "video":
                raise Rejected(kind, "has the name of an image; rename it") from None
            if kind is not None:
                raise Rejected(kind, f"not read; convert it to one of {', '.join(FORMATS)}") from None
            raise Rejected("not an image", f"not a readable {', '.join(FORMATS)} file") from None
        except Exception as error:  # Pillow's decoders raise nearly every type on damaged input
            if isinstance(error, MemoryError) or "memory" in str(error):
                raise out_of_memory() from None
            raise Rejected("corrupt", str(error) or type(error).__name__) from None

    def probe(self, data: bytes) -> Checked:
        """Return an image that `check` kept or made, with the size from its header, after EXIF rotation.

        Raises Rejected where the header does not give the size.
        """
        if data.startswith(jpeg.SIGNATURE):
            return Checked(data, "jpg", *_shown_sides(jpeg.read_header(data)))
        try:
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                return Checked(data, "png", image.height, image.width)
        except Exception as error:  # as above
            raise Rejected("not an image", str(error) or type(error).__name__) from None

    def thumbnail(self, data: bytes, side: int) -> bytes:
        """Return a small upright JPEG of an image that passed `check`, with at most `side` pixels per side.

        Raises Rejected for more than `DEFAULT_MAX_PIXELS`, and any exception of Pillow for an unreadable image.
        """
        turn = 1
        if data.startswith(jpeg.SIGNATURE):
            with suppress(Rejected):  # an earlier version may have accepted it
                turn = jpeg.read_header(data).orientation
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > DEFAULT_MAX_PIXELS:
                raise _too_many_pixels(image.width, image.height, f"more than {DEFAULT_MAX_PIXELS}")
            image.draft("RGB", (2 * side, 2 * side))  # decodes a large JPEG at a fraction of its size
            image.thumbnail((side, side))
            pixels = image.convert("RGB")
        file = io.BytesIO()
        _upright(pixels, turn).save(file, "JPEG", quality=80)
        return file.getvalue()

    def moving(self, data: bytes, side: int) -> None:
        """Return None: an image does not move."""


IMAGE = ImageMedia()


def _check_jpeg(data: bytes, options: CheckOptions) -> Checked:
    header = jpeg.read_header(data)
    _check_size(header.width, header.height, options.max_pixels, _LONGEST_JPEG)
    shrink = options.resize is not None and min(header.width, header.height) > options.resize
    if header.plain and not shrink and _pillow_opens(data):
        if options.check == "decode":
            jpeg.decode(data, header)
        return Checked(data, "jpg", *_shown_sides(header))
    return _converted(Image.fromarray(jpeg.decode(data, header)), header.orientation, options.resize)


def _shown_sides(header: jpeg.Header) -> tuple[int, int]:
    """Return the height and width of a JPEG after its EXIF rotation."""
    turned = header.orientation >= TURNED
    return (header.width, header.height) if turned else (header.height, header.width)


def _check_png(data: bytes, options: CheckOptions) -> Checked:
    chunks = png.read(data, whole=options.check == "decode")
    _check_size(chunks.width, chunks.height, options.max_pixels)
    if chunks.frames > 1:
        raise Rejected("animated", "more than one frame")
    if chunks.bits > 8:
        raise Rejected(f"{chunks.bits}-bit", f"a PNG of {chunks.bits} bits a channel")
    keep = chunks.plain and options.resize is None and _pillow_opens(chunks.metadata)
    if keep and (options.check == "header" or chunks.is_whole()):
        return Checked(data, "png", chunks.height, chunks.width)
    if options.check == "header":
        chunks = png.read(data)
    with Image.open(io.BytesIO(chunks.stripped), formats=["PNG"]) as image:
        return _converted(image, chunks.orientation, options.resize)


def _check_other(data: bytes, options: CheckOptions) -> Checked:
    # Pillow's warnings (odd metadata, palettes) do not concern the pixels.
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=_CONVERTED) as image:
        _check_size(image.width, image.height, options.max_pixels)
        if getattr(image, "n_frames", 1) > 1:
            raise Rejected("animated", "more than one frame")
        if _deeper_than_8_bits(image):
            raise Rejected("16-bit", f"more than 8 bits a channel (mode {image.mode})")
        image.load()
        return _converted(image, orientation(image.info.get("exif", b"")), options.resize)


def _pillow_opens(data: bytes) -> bool:
    """Return whether Pillow opens a file. Many readers depend on it, and some metadata makes it fail."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS[:2]) as image:
            if image.format == "PNG":
                image.load()  # which also reads the metadata behind the pixels
    except Exception:  # nearly every type
        return False
    return True


def _check_size(width: int, height: int, max_pixels: int, longest: int = _LONGEST_PNG) -> None:
    if width * height > max_pixels:
        raise _too_many_pixels(width, height, f"more than {max_pixels}")
    if max(width, height) > longest:
        raise _too_many_pixels(width, height, f"where a side has at most {longest}")


def _too_many_pixels(width: int, height: int, why: str) -> Rejected:
    return Rejected("too many pixels", f"{width} x {height} pixels, {why}")


def _converted(image: Image.Image, turn: int, resize: int | None) -> Checked:
    """Convert an image whose bytes are not kept: to PNG or, with `resize`, to JPEG no larger than that."""
    pixels = _upright(_flatten(image), turn)
    if resize is None:
        return Checked(_encode(pixels, "PNG"), "png", pixels.height, pixels.width)
    pixels = pixels.convert("RGB")
    if min(pixels.size) > resize:
        scale = resize / min(pixels.size)
        size = (round(pixels.width * scale), round(pixels.height * scale))
        pixels = pixels.resize(size, Resampling.BICUBIC)
    if max(pixels.size) > _LONGEST_JPEG:
        raise Rejected("too many pixels", f"{pixels.width} x {pixels.height} as JPEG, where a side has {_LONGEST_JPEG}")
    return Checked(_encode(pixels, "JPEG"), "jpg", pixels.height, pixels.width)


def _upright(pixels: Image.Image, turn: int) -> Image.Image:
    return pixels.transpose(_UPRIGHT[turn]) if turn in _UPRIGHT else pixels


def _deeper_than_8_bits(image: Image.Image) -> bool:
    """Return whether an image has more than 8 bits. Its mode is not enough: Pillow opens 48-bit colour as 8-bit RGB."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return any(bits > 8 for bits in image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, ()))
    return image.mode.startswith(("I", "F"))


def _flatten(image: Image.Image) -> Image.Image:
    """Convert an image to grey ("L") or "RGB"; lossless except for CMYK, whose RGB is only a convention."""
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
