"""Check whether an image can be used for training, and choose the bytes to store.

Every image is decoded in full once, strictly, so that no damaged one reaches a reader. Bytes are kept where
every reader agrees on their pixels (8-bit JPEG and PNG); anything else is stored as lossless PNG or, with
`resize`, as JPEG (`rendering`). With the check `header`, images whose bytes are kept are not decoded, so damaged
ones remain, and so do PNGs whose EXIF follows their pixels.
"""

import io
import warnings
from contextlib import suppress

from PIL import Image, UnidentifiedImageError

from shards.media import formats, jpeg, png
from shards.media.exif import TURNED, orientation
from shards.media.formats import FORMATS, KEPT
from shards.media.kinds import kind_of
from shards.media.media import DEFAULT_MAX_PIXELS, Checked, CheckOptions, Rejected, out_of_memory, refuse_huge
from shards.media.rendering import LONGEST_JPEG, bits_per_channel, render, upright

_MOST_BITS = {"reject": 8, "scale": 16}  # per channel, by `CheckOptions.depth`
_LONGEST_PNG = 1_000_000  # pixels per side that the libraries read and write

# Replaced by our own limit, which gives a reason.
Image.MAX_IMAGE_PIXELS = None


class ImageMedia:
    """Still images: JPEG, PNG and the like, as 8-bit grey or RGB."""

    name = "image"
    kept = frozenset({"jpg", "jpeg", "jpe", "jfif", "png"})
    suffixes = kept | {"webp", "bmp", "tif", "tiff", "gif"} | formats.SUFFIXES
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
            if kind is not None and (remedy := formats.remedy(kind)):
                raise Rejected(kind, f"not read without a decoder: {remedy}") from None
            if kind in FORMATS or kind in formats.KINDS:
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
        upright(pixels, turn).save(file, "JPEG", quality=80)
        return file.getvalue()

    def moving(self, data: bytes, side: int) -> None:
        """Return None: an image does not move."""


IMAGE = ImageMedia()


def _check_jpeg(data: bytes, options: CheckOptions) -> Checked:
    header = jpeg.read_header(data)
    _check_size(header.width, header.height, options.max_pixels, LONGEST_JPEG)
    shrink = options.resize is not None and min(header.width, header.height) > options.resize
    if header.plain and not shrink and _pillow_opens(data):
        if options.check == "decode":
            jpeg.decode(data, header)
        return Checked(data, "jpg", *_shown_sides(header))
    return render(Image.fromarray(jpeg.decode(data, header)), header.orientation, options)


def _shown_sides(header: jpeg.Header) -> tuple[int, int]:
    """Return the height and width of a JPEG after its EXIF rotation."""
    turned = header.orientation >= TURNED
    return (header.width, header.height) if turned else (header.height, header.width)


def _check_png(data: bytes, options: CheckOptions) -> Checked:
    chunks = png.read(data, whole=options.check == "decode")
    _check_size(chunks.width, chunks.height, options.max_pixels)
    if chunks.frames > 1:
        raise Rejected("animated", "more than one frame")
    if chunks.bits > 8 and options.depth == "reject":
        raise Rejected(f"{chunks.bits}-bit", f"a PNG of {chunks.bits} bits a channel")
    keep = chunks.plain and options.resize is None and _pillow_opens(chunks.metadata)
    if keep and (options.check == "header" or chunks.is_whole()):
        return Checked(data, "png", chunks.height, chunks.width)
    if options.check == "header":
        chunks = png.read(data)
    with Image.open(io.BytesIO(chunks.stripped), formats=["PNG"]) as image:
        return render(image, chunks.orientation, options)


def _check_other(data: bytes, options: CheckOptions) -> Checked:
    # Pillow's warnings (odd metadata, palettes) do not concern the pixels.
    readable = [*FORMATS[len(KEPT) :], *formats.installed()]
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=readable) as image:
        _check_size(image.width, image.height, options.max_pixels)
        if getattr(image, "n_frames", 1) > 1:
            raise Rejected("animated", "more than one frame")
        bits = bits_per_channel(image, data)
        if bits > _MOST_BITS[options.depth]:
            raise Rejected("16-bit", f"more than {_MOST_BITS[options.depth]} bits a channel (mode {image.mode})")
        image.load()
        return render(image, orientation(image.info.get("exif") or b""), options)


def _pillow_opens(data: bytes) -> bool:
    """Return whether Pillow opens a file. Many readers depend on it, and some metadata makes it fail."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=KEPT) as image:
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
