"""Formats that need a decoder, depths of more than 8 bits, and transparency: which pixels are stored."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from making_images import check_image, decoded, encoded, pixels
from making_pngs import SIGNATURE, chunk, idat, ihdr
from PIL import Image

from shards.media import formats
from shards.media.image import IMAGE
from shards.media.media import Alpha, Checked, CheckOptions, Rejected

pillow_heif = pytest.importorskip("pillow_heif")
pillow_heif.register_heif_opener()

LIMIT = 10**6
RGB = Image.fromarray(pixels(0))
SCALED = CheckOptions(depth="scale")


def deep(height: int = 6, width: int = 5, channels: int = 1) -> np.ndarray:
    """Return pixels of 16 bits, no two of whose bytes agree."""
    numbers = np.arange(height * width * channels, dtype=np.uint32) * 2654435761
    shape = (height, width, channels) if channels > 1 else (height, width)
    return (numbers >> 16).astype(np.uint16).reshape(shape)


def stored(data: bytes, options: CheckOptions) -> np.ndarray:
    checked = IMAGE.check(data, options)
    assert (checked.suffix, (checked.height, checked.width)) == ("png", decoded(checked.data).shape[:2])
    return decoded(checked.data)


def rejected(data: bytes, options: CheckOptions) -> Rejected:
    with pytest.raises(Rejected) as caught:
        IMAGE.check(data, options)
    return caught.value


@pytest.mark.parametrize(
    ("file_format", "options"),
    [("HEIF", {"quality": -1, "chroma": 444}), ("AVIF", {"quality": 100, "subsampling": "4:4:4"}), ("JPEG2000", {})],
)
def test_the_pixels_are_those_that_the_decoder_shows(file_format: str, options: dict[str, Any]) -> None:
    data = encoded(RGB, file_format, **options)
    found = stored(data, CheckOptions())
    assert np.array_equal(found, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert np.abs(found.astype(int) - pixels(0)).max() <= 8, "it is another picture"
    assert check_image(data, LIMIT, 20).suffix == "jpg"


@pytest.mark.parametrize("file_format", ["HEIF", "AVIF"])
def test_an_orientation_is_applied_once(file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = stored(encoded(RGB, file_format, exif=exif.tobytes()), CheckOptions())
    expected = np.rot90(pixels(0), -1).astype(int)
    assert found.shape == expected.shape and np.abs(found - expected).mean() < 8


@pytest.mark.parametrize(("file_format", "kind"), [("HEIF", "HEIC"), ("AVIF", "AVIF"), ("JPEG2000", "JPEG 2000")])
def test_without_its_decoder_a_format_is_rejected_by_name_with_the_remedy(
    file_format: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(RGB, file_format)
    monkeypatch.setattr(formats, "installed", tuple)
    error = rejected(data, CheckOptions())
    assert (error.reason, error.detail.startswith("not read without a decoder: ")) == (kind, True)
    assert "install" in error.detail


def test_a_plugin_that_is_not_there_is_no_decoder() -> None:
    decoder = replace(formats.OPTIONAL["HEIF"], plugin="no_module_of_this_name")
    assert not formats._is_ready(decoder)
    assert formats.installed() == ("HEIF", "AVIF", "JPEG2000")


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "JPEG2000"])
def test_grey_of_16_bits_is_rejected_or_its_top_8_bits_are_kept(file_format: str) -> None:
    values = deep(40, 56)
    data = encoded(Image.fromarray(values), file_format)
    assert rejected(data, CheckOptions()).reason == "16-bit"
    assert np.array_equal(stored(data, SCALED), (values >> 8).astype(np.uint8))


def test_colour_of_16_bits_keeps_the_top_8_of_each_channel() -> None:
    values = deep(channels=3)
    lines = values.astype(">u2").reshape(len(values), -1).view(np.uint8)
    data = SIGNATURE + ihdr(values, bits=16) + idat(lines) + chunk(b"IEND")
    assert rejected(data, CheckOptions()).reason == "16-bit"
    assert np.array_equal(stored(data, SCALED), (values >> 8).astype(np.uint8))


def heic_of_10_bits() -> bytes:
    file = io.BytesIO()
    values = np.repeat(np.repeat(deep(4, 4, 3), 16, 0), 16, 1)
    pillow_heif.encode("RGB;16", (64, 64), values.tobytes(), file, quality=-1)
    return file.getvalue()


def avif_of_10_bits() -> bytes:
    av = pytest.importorskip("av")
    from making_videos import leave_real_time

    file = io.BytesIO()
    with av.open(file, "w", format="avif") as container:
        stream = container.add_stream("libsvtav1", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p10le"
        frame = av.VideoFrame.from_ndarray(pixels(0, 64, 64), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    leave_real_time()
    return file.getvalue()


@pytest.mark.parametrize("make", [heic_of_10_bits, avif_of_10_bits])
def test_10_bits_of_heic_and_avif_are_found_although_pillow_shows_8(make: Any) -> None:
    data = make()
    assert Image.open(io.BytesIO(data)).mode == "RGB"
    assert rejected(data, CheckOptions()).reason == "16-bit"
    found = stored(data, SCALED)
    assert np.array_equal(found, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("values", [np.full((4, 4), 70_000, np.int32), np.full((4, 4), 0.5, np.float32)])
def test_numbers_without_a_range_are_rejected_whatever_the_options(values: np.ndarray) -> None:
    assert rejected(encoded(Image.fromarray(values), "TIFF"), SCALED).reason == "16-bit"


def half_transparent() -> Image.Image:
    image = Image.new("RGBA", (8, 4), (200, 100, 0, 255))
    image.paste((200, 100, 0, 51), (0, 0, 4, 4))  # a fifth
    image.paste((10, 20, 30, 0), (0, 0, 2, 4))
    return image


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF", "JPEG2000"])
@pytest.mark.parametrize(
    ("alpha", "hidden", "fifth"),
    [
        ("white", (255, 255, 255), (244, 224, 204)),
        ("black", (0, 0, 0), (40, 20, 0)),
        ("drop", (10, 20, 30), (200, 100, 0)),
    ],
)
def test_transparency(alpha: Alpha, hidden: tuple[int, ...], fifth: tuple[int, ...], file_format: str) -> None:
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    data = encoded(half_transparent(), file_format, **options)
    assert rejected(data, CheckOptions()).reason == "transparent"
    found = stored(data, CheckOptions(alpha=alpha))
    expected = np.full((4, 8, 3), (200, 100, 0), np.uint8)
    expected[:, :4], expected[:, :2] = fifth, hidden
    assert np.array_equal(found, expected)


def test_a_colour_that_stands_for_transparency_is_put_on_the_background(alpha: Alpha = "white") -> None:
    data = encoded(Image.fromarray(pixels(0)).quantize(16), "PNG", transparency=0)
    indices = np.asarray(Image.open(io.BytesIO(data)))
    found = stored(data, CheckOptions(alpha=alpha))
    assert (found[indices == 0] == 255).all() and not (found[indices == 1] == 255).all()


def test_what_is_opaque_and_of_8_bits_is_stored_alike_whatever_the_options() -> None:
    for data in (encoded(RGB, "JPEG"), encoded(RGB, "PNG"), encoded(RGB.convert("RGBA"), "PNG"), encoded(RGB, "BMP")):
        expected: Checked = IMAGE.check(data, CheckOptions())
        assert IMAGE.check(data, CheckOptions(alpha="black", depth="scale")) == expected
