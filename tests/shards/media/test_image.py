import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from making_images import check_image, decoded, encoded, picture, pixels
from PIL import Image

from shards.media.media import Rejected

LIMIT = 1_000_000
RGB = picture(0)
GREY = RGB.convert("L")
JPEG = encoded(RGB, "JPEG", quality=90)
PNG = encoded(RGB, "PNG")


def rejection(data: bytes, **options: Any) -> Rejected:
    with pytest.raises(Rejected) as caught:
        check_image(data, **{"max_pixels": LIMIT, "resize": None} | options)
    return caught.value


def oriented(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


def mpo() -> bytes:
    return encoded(RGB, "MPO", save_all=True, append_images=[picture(1)])


@pytest.mark.parametrize(
    ("data", "suffix"),
    [
        (JPEG, "jpg"),
        (encoded(GREY, "JPEG"), "jpg"),
        (encoded(RGB, "JPEG", progressive=True), "jpg"),
        (encoded(RGB, "JPEG", keep_rgb=True), "jpg"),
        (JPEG + b"trailing bytes", "jpg"),
        (mpo(), "jpg"),
        (PNG, "png"),
        (encoded(GREY, "PNG"), "png"),
    ],
    ids=["jpeg", "grey jpeg", "progressive", "rgb jpeg", "trailing", "mpo", "png", "grey png"],
)
def test_plain_jpeg_and_png_bytes_are_kept(data: bytes, suffix: str) -> None:
    checked = check_image(data, LIMIT, None)
    assert (checked.data, checked.suffix, checked.height, checked.width) == (data, suffix, 40, 56)


@pytest.mark.parametrize(
    ("image", "file_format", "options"),
    [
        (RGB, "WEBP", {"lossless": True}),
        (RGB, "BMP", {}),
        (RGB, "TIFF", {"compression": "tiff_lzw"}),
        (RGB.quantize(16), "GIF", {}),
        (RGB.quantize(16), "PNG", {}),
        (GREY.convert("1"), "PNG", {}),
        (GREY, "BMP", {}),
        (RGB.convert("RGBA"), "PNG", {}),
        (GREY.convert("LA"), "PNG", {}),
        (RGB.convert("RGBA"), "WEBP", {"lossless": True}),
        (RGB, "PNG", {"transparency": (1, 255, 0)}),
        (RGB.quantize(16), "PNG", {"transparency": 200}),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_other_formats_become_png_without_loss(image: Image.Image, file_format: str, options: dict[str, Any]) -> None:
    data = encoded(image, file_format, **options)
    checked = check_image(data, LIMIT, None)
    stored = Image.open(io.BytesIO(checked.data))
    assert (checked.suffix, stored.format, stored.mode in ("L", "RGB")) == ("png", "PNG", True)
    assert np.array_equal(np.asarray(stored.convert("RGB")), np.asarray(image.convert("RGB")))
    assert (checked.height, checked.width) == (40, 56)
    assert check_image(data, LIMIT, None) == checked


def test_lossy_webp_keeps_the_pixels_it_decodes_to() -> None:
    data = encoded(RGB, "WEBP", quality=50)
    assert np.array_equal(decoded(check_image(data, LIMIT, None).data), decoded(data))


def test_cmyk_jpeg_becomes_the_rgb_that_pillow_shows_upright_and_without_its_profile() -> None:
    cmyk = RGB.convert("CMYK")
    data = encoded(cmyk, "JPEG", exif=oriented(6), icc_profile=b"of the inks", comment=b"original")
    checked = check_image(data, LIMIT, None)
    stored = Image.open(io.BytesIO(checked.data))
    expected = Image.open(io.BytesIO(data)).convert("RGB").transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(np.asarray(stored), np.asarray(expected))
    assert (checked.suffix, checked.height, checked.width) == ("png", 56, 40)
    assert not stored.info


@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_turns_sizes_and_converted_pixels(orientation: int) -> None:
    exif = oriented(orientation)
    turned = (56, 40) if 5 <= orientation <= 8 else (40, 56)
    kept = check_image(encoded(RGB, "JPEG", exif=exif), LIMIT, None)
    assert (kept.height, kept.width) == turned

    upright = encoded(RGB, "PNG", exif=exif)
    converted = check_image(upright, LIMIT, None)
    assert (converted.height, converted.width) == turned
    expected = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90,
    }.get(orientation, lambda a: a)(pixels(0))
    assert np.array_equal(decoded(converted.data), expected)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_truncated_exif_block_still_turns(order: str) -> None:
    directory = struct.pack(f"{order}HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    tiff = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8) + directory
    for exif, expected in (
        (tiff, (56, 40)),
        (tiff[:-4], (56, 40)),
        (tiff[:14], (40, 56)),
        (b"II*", (40, 56)),
    ):
        checked = check_image(encoded(RGB, "JPEG", exif=b"Exif\0\0" + exif), LIMIT, None)
        assert (checked.height, checked.width) == expected


def test_orientation_in_xmp_alone_does_not_turn() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    checked = check_image(encoded(RGB, "JPEG", xmp=xmp), LIMIT, None)
    assert (checked.height, checked.width) == (40, 56)


def with_flipped_byte(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def rgb_png_of_16_bits() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x12\x34" * 6) * 2)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def transparent() -> Image.Image:
    image = RGB.convert("RGBA")
    image.putpixel((3, 4), (1, 2, 3, 254))
    return image


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"no image at all", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        (PNG[:16] + bytes(4) + PNG[20:], "corrupt"),  # zero pixels wide
        (JPEG[: len(JPEG) // 2], "corrupt"),
        (JPEG[:-2], "corrupt"),
        (encoded(RGB, "JPEG", progressive=True)[:-2], "corrupt"),
        (PNG[: len(PNG) // 2], "corrupt"),
        (with_flipped_byte(PNG, len(PNG) - 16), "corrupt"),
        (encoded(RGB.quantize(16), "GIF")[:-40], "corrupt"),
        (encoded(Image.fromarray(np.full((4, 4), 40_000, np.uint16)), "PNG"), "16-bit"),
        (rgb_png_of_16_bits(), "16-bit"),
        (encoded(Image.fromarray(np.full((4, 4), 40_000, np.uint16)), "TIFF"), "16-bit"),
        (encoded(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"), "16-bit"),
        (encoded(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF"), "16-bit"),
        (encoded(transparent(), "PNG"), "transparent"),
        (encoded(transparent(), "WEBP", lossless=True), "transparent"),
        (encoded(RGB.quantize(16), "PNG", transparency=0), "transparent"),
        (encoded(RGB, "PNG", transparency=RGB.getpixel((0, 0))), "transparent"),
        (encoded(RGB, "GIF", save_all=True, append_images=[picture(1)]), "animated"),
        (encoded(RGB, "PNG", save_all=True, append_images=[picture(1)]), "animated"),
        (encoded(RGB, "WEBP", save_all=True, append_images=[picture(1)]), "animated"),
        (encoded(RGB, "TIFF", save_all=True, append_images=[picture(1)]), "animated"),
        (encoded(RGB.convert("LAB"), "TIFF"), "colour space"),
    ],
)
def test_unusable_images_are_rejected_with_a_reason(data: bytes, reason: str) -> None:
    error = rejection(data)
    assert (error.reason, bool(error.detail)) == (reason, True)
    assert "0x" not in error.detail, "an address would make two builds differ"


def test_a_damaged_jpeg_never_passes_whole_where_it_is_cut() -> None:
    for end in range(1, len(JPEG), 97):
        assert rejection(JPEG[:end]).reason in ("corrupt", "not an image")


def test_too_many_pixels_are_rejected_before_decoding_and_without_pillows_warnings() -> None:
    bomb = encoded(Image.new("1", (20_000, 10_000)), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        error = rejection(bomb, max_pixels=199_999_999)
    assert (error.reason, error.detail) == ("too many pixels", "20000 x 10000 pixels, more than 199999999")
    assert rejection(JPEG, max_pixels=40 * 56 - 1).reason == "too many pixels"
    assert check_image(JPEG, 40 * 56, None).data == JPEG


def test_resize_shrinks_the_upright_short_side_and_encodes_at_full_chroma() -> None:
    data = encoded(picture(0, 60, 90), "JPEG", quality=95, exif=oriented(6))
    checked = check_image(data, LIMIT, 32)
    stored = Image.open(io.BytesIO(checked.data))
    assert (checked.suffix, checked.height, checked.width, stored.size) == ("jpg", 48, 32, (32, 48))
    upright = Image.open(io.BytesIO(data)).convert("RGB").transpose(Image.Transpose.ROTATE_270)
    expected = upright.resize((32, 48), Image.Resampling.BICUBIC)
    assert checked.data == encoded(expected, "JPEG", quality=95, subsampling=0)
    assert "exif" not in stored.info


def test_resize_leaves_small_jpegs_alone_and_makes_jpegs_of_the_rest() -> None:
    assert check_image(JPEG, LIMIT, 40).data == JPEG
    for small in (PNG, encoded(GREY, "PNG"), encoded(RGB.convert("CMYK"), "JPEG")):
        checked = check_image(small, LIMIT, 100)
        assert (checked.suffix, checked.height, checked.width) == ("jpg", 40, 56)
        expected = encoded(Image.open(io.BytesIO(small)).convert("RGB"), "JPEG", quality=95, subsampling=0)
        assert checked.data == expected


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_check_of_the_header_keeps_what_the_full_one_keeps(orientation: int) -> None:
    for data in (encoded(RGB, "JPEG", exif=oriented(orientation)), encoded(GREY, "JPEG"), mpo(), PNG):
        assert check_image(data, LIMIT, None, "header") == check_image(data, LIMIT, None)
    for data in (encoded(RGB, "BMP"), encoded(RGB.convert("P"), "PNG"), encoded(RGB, "JPEG", quality=50)):
        assert check_image(data, LIMIT, 20, "header") == check_image(data, LIMIT, 20)


def test_a_check_of_the_header_misses_damaged_pixels_and_nothing_else() -> None:
    for data in (JPEG[:-100], PNG[:-100]):
        assert rejection(data).reason == "corrupt"
        assert check_image(data, LIMIT, None, "header").data == data
    transparent = RGB.convert("RGBA")
    transparent.putalpha(7)
    deep = encoded(Image.fromarray(np.full((40, 56), 40_000, np.uint16)), "PNG")
    frames = encoded(RGB, "GIF", save_all=True, append_images=[picture(1)])
    cases = [b"", b"text", encoded(transparent, "PNG"), deep, frames, encoded(RGB, "BMP")[:-100]]
    for data in cases:
        assert rejection(data, check="header").reason == rejection(data).reason
    assert rejection(JPEG, check="header", max_pixels=2_239).reason == "too many pixels"


def test_a_file_of_too_many_bytes_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.media.media.MAX_BYTES", len(JPEG) - 1)
    monkeypatch.setattr("shards.media.image._check_jpeg", None)
    error = rejection(JPEG)
    assert (error.reason, error.detail) == ("too many bytes", f"{len(JPEG)} bytes, more than {len(JPEG) - 1}")


@pytest.mark.parametrize(
    ("decoder", "data"), [("simplejpeg.decode_jpeg", JPEG), ("PIL.ImageFile.ImageFile.load", encoded(RGB, "BMP"))]
)
def test_an_image_for_which_there_is_no_memory_is_one_reject(
    decoder: str, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(decoder, fail)
    assert rejection(data).reason == "needs too much memory"
