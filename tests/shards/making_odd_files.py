"""Image files as they are found in the wild and worse, each with its expected result."""

import base64
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from making_images import encoded, picture, pixels
from making_jpegs import EOI, SOI, exif, flat_jpeg, inserted, lossless_jpeg, scans, segment
from making_pngs import IEND, SIGNATURE, chunk, idat, ihdr, interlaced_png, png, rows
from PIL import Image

RGB = picture(0)
GREY = RGB.convert("L")
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))
# Pillow writes no arithmetic coding: a grey ramp of 40 x 56 pixels, by cjpeg -arithmetic
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAxNDQ0Hyc5PT"
    "gyPC4zNDL/yQALCAAoADgBAREA/8wABgAQEAX/2gAIAQEAAD8AyPQ4M4UFhu3RK+igdkgySgehVam7fTl4dnm3bkbPzGNYMEeWskJpSCcT+orI"
    "mVMAybu85Eh2RVt/AS5MqQFxzAshFrliHHPMjTr+LZBOlZJUzrPyIEx+5mnf4KZTcnApvz8T8UAGvLAJ1hab8p6YNVcFlLgo+OOlNvZThw/wjw"
    "Ebnh1qYLqxXZHwMMXnJRORG3HqCwNppJ1TnrMKdxofuYWFfSYKwqv8O8cjFnfijtBRu/Fxjv0EVOsRWROgzeFbNgTB+AygDTzRKpBM7KrT2vN7"
    "fV4OmW0ZsnnloNLIvYx3Rjj1+qvNhRWTCmLCjMwCS1JSq+2tBehOMe1B71efuh0T6zOyCMnRpAaXMVQdMldM/9k="
)
PAGE = b"<html><head><title>502 Bad Gateway</title></head><body>" + b"<p>upstream</p>\r\n" * 20
JFIF = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")
Odd = dict[str, tuple[bytes, str]]  # by name: the file, and `kept`, `rewritten` or the reason for its rejection


def odd_files() -> Odd:
    """All of them."""
    return {
        name: (data, outcome)
        for part in (_jpegs, _exifs, _damaged_jpegs, _pngs, _others)
        for name, data, outcome in part()
    }


Found = Iterator[tuple[str, bytes, str]]


def _jpegs() -> Found:
    plain = encoded(RGB, "JPEG", quality=90)
    yield "plain", plain, "kept"
    yield "grey", encoded(GREY, "JPEG"), "kept"
    yield "progressive", encoded(NOISE, "JPEG", progressive=True), "kept"
    yield (
        "optimised, of one colour: nothing but zeros",
        encoded(Image.new("RGB", (256, 256), "white"), "JPEG", optimize=True),
        "kept",
    )
    yield "restarts", encoded(NOISE, "JPEG", restart_marker_blocks=2), "kept"
    yield "mpo", encoded(RGB, "MPO", save_all=True, append_images=[picture(1)]), "kept"
    yield "trailing bytes", plain + b"more", "kept"
    yield "another jpeg behind it", plain + encoded(picture(1), "JPEG"), "kept"
    yield "named wrongly.png", plain, "kept"
    yield "arithmetic", ARITHMETIC, "kept"
    for one in ("11", "22", "44", "11 11 11", "21 11 11", "12 11 11", "22 11 11", "41 11 11", "14 11 11"):
        yield f"sampling {one}", flat_jpeg(sampling=_factors(one)), "kept"
    for one in ("42 11 11", "24 11 11", "31 11 11", "22 21 12", "11 22 22"):
        yield f"unusual sampling {one}", flat_jpeg(sampling=_factors(one)), "kept"
    yield "sampling that no decoder has", flat_jpeg(sampling=_factors("22 31 11")), "corrupt"
    yield "a scan for each component", flat_jpeg(interleaved=False), "kept"
    yield "cmyk", encoded(RGB.convert("CMYK"), "JPEG"), "rewritten"
    yield "ycck", encoded(RGB.convert("CMYK"), "JPEG", exif=exif(6)), "rewritten"
    yield "components R, G, B", flat_jpeg(ids=b"RGB", sampling=_factors("11 11 11")), "kept"
    yield "adobe rgb", flat_jpeg(header=segment(0xEE, b"Adobe\0\x64\0\0\0\0\0"), sampling=_factors("11 11 11")), "kept"
    yield "adobe of an unknown number", flat_jpeg(header=segment(0xEE, b"Adobe\0\x64\0\0\0\0\x4d")), "kept"
    yield "jfif of version 0.00", flat_jpeg(header=segment(0xE0, b"JFIF\0\0\0\0\0\1\0\1\0\0")), "kept"
    yield "fill bytes", inserted(plain, b"\xff\xff\xff"), "kept"
    yield "zeros before the end", plain[:-2] + bytes(100) + EOI, "kept"
    yield "lossless rgb", lossless_jpeg(3, b"RGB"), "kept"
    yield "lossless grey", lossless_jpeg(1), "rewritten"
    yield "lossless ycc", lossless_jpeg(3, header=JFIF), "lossless JPEG"
    yield "lossless arithmetic", flat_jpeg(process=0xCB), "lossless JPEG"
    yield "lossless of 16 bits", lossless_jpeg(1, bits=16), "16-bit"
    yield "12 bits", flat_jpeg(process=0xC1, bits=12), "12-bit"
    yield "12 bits progressive", flat_jpeg(process=0xC2, bits=12), "12-bit"
    yield "hierarchical", flat_jpeg(process=0xC5), "hierarchical JPEG"
    yield "jpeg-ls", flat_jpeg(process=0xF7), "JPEG-LS"
    yield "two components", flat_jpeg(sampling=_factors("11 11")), "colour space"
    yield "a side of 65535", flat_jpeg(height=8, width=65_535), "too many pixels"


def _exifs() -> Found:
    plain = encoded(RGB, "JPEG", quality=90)
    six, one, nine = exif(6), exif(1), exif(9)
    for turn in range(10):
        yield f"orientation {turn}", inserted(plain, exif(turn)), "kept"
    yield "exif behind others", inserted(plain, JFIF + segment(0xE2, b"ICC_PROFILE\0") + six), "rewritten"
    yield "exif behind the frame header", _before_scan(plain, six), "kept"
    yield "exif behind the pixels", plain + six, "kept"
    parts = segment(0xE1, six[4:24]) + segment(0xE1, b"Exif\0\0" + six[24:])
    yield "exif in two segments", inserted(plain, parts), "kept"
    yield "the same exif twice", inserted(plain, six + six), "kept"
    yield "two exifs, 1 and 6", inserted(plain, one + six), "rewritten"
    yield "two exifs, 6 and 1", inserted(plain, six + one), "rewritten"
    yield "two exifs, 6 and 9", inserted(plain, six + nine), "rewritten"
    yield "two exifs, the second behind the frame header", _before_scan(inserted(plain, one), six), "rewritten"
    yield "two exifs, one without an orientation", inserted(plain, exif(6, tag=0x0100) + six), "rewritten"
    yield "an empty exif and another", inserted(plain, segment(0xE1, b"Exif\0\0") + one), "kept"
    yield (
        "xmp and exif differ",
        inserted(plain, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='6'/>") + one),
        "kept",
    )
    yield "orientation as a byte", inserted(plain, exif(6, kind=1)), "kept"
    yield "orientation as a long", inserted(plain, exif(6, kind=4)), "kept"
    yield "orientation as a big-endian long", inserted(plain, exif(6, kind=4, order=">")), "kept"
    yield "an order of bytes that does not exist", inserted(plain, exif(6, order=">", mark=b"XX")), "kept"
    yield "png with exif", encoded(RGB, "PNG", exif=six[4:]), "rewritten"
    yield "png with exif behind its pixels", png(pixels(0), after=chunk(b"eXIf", six[10:])), "rewritten"
    yield "webp with exif", encoded(RGB, "WEBP", lossless=True, exif=six[4:]), "rewritten"
    yield "tiff that is turned", encoded(RGB, "TIFF", tiffinfo={0x0112: 6}), "rewritten"


def _damaged_jpegs() -> Found:
    noise = encoded(NOISE, "JPEG", quality=90, subsampling=0)
    begin = scans(noise)[0] + 14
    middle = (begin + len(noise)) // 2
    yield "half", noise[:middle], "corrupt"
    yield "half and an end marker", noise[:middle] + EOI, "corrupt"
    yield "no end marker", noise[:-2], "corrupt"
    yield "zeros", noise[:middle] + bytes(512) + noise[middle + 512 :], "corrupt"
    yield "zeros to the end", noise[:middle] + bytes(len(noise) - middle - 2) + EOI, "corrupt"
    yield "zeros put in", noise[:middle] + bytes(512) + noise[middle:], "corrupt"
    yield "an error page", noise[:middle] + PAGE + noise[middle + len(PAGE) :], "corrupt"
    yield "an error page put in", noise[:middle] + PAGE + noise[middle:], "corrupt"
    yield "another jpeg put in", noise[:middle] + encoded(RGB, "JPEG") + noise[middle:], "corrupt"
    yield "a part left out", noise[:middle] + noise[middle + 300 :], "corrupt"
    yield "ends in other bytes", noise[:-2] + b"\x55" * 30 + EOI, "corrupt"
    frame = noise.index(b"\xff\xc0")
    yield "claims 9000 x 9000", noise[: frame + 5] + struct.pack(">HH", 9000, 9000) + noise[frame + 9 :], "corrupt"
    yield "claims no height", noise[: frame + 5] + bytes(2) + noise[frame + 7 :], "corrupt"
    restarts = encoded(NOISE, "JPEG", restart_marker_blocks=2)
    yield "a wrong restart marker", restarts.replace(b"\xff\xd1", b"\xff\xd5", 1), "corrupt"
    yield "a missing restart marker", restarts.replace(b"\xff\xd1", b"", 1), "corrupt"
    yield "a restart marker too many", noise[:-40] + b"\xff\xd0" + noise[-40:], "corrupt"
    progressive = encoded(NOISE, "JPEG", progressive=True)
    places = scans(progressive)
    yield "progressive without its last scan", progressive[: places[-1]] + EOI, "corrupt"
    yield "progressive without most scans", progressive[: places[2]] + EOI, "corrupt"
    yield "progressive without a scan", progressive[: places[4]] + progressive[places[5] :], "corrupt"
    yield "progressive cut within a scan", progressive[: places[-1] + 40] + EOI, "corrupt"
    yield "too many scans", progressive[:-2] + progressive[places[-1] : -2] * 120 + EOI, "corrupt"
    separate = flat_jpeg(interleaved=False)
    yield "without the scan of a component", separate[: scans(separate)[-1]] + EOI, "corrupt"
    plain = encoded(RGB, "JPEG")
    yield "bytes between segments", inserted(plain, b"\0\0\0"), "corrupt"
    yield "a restart marker in the header", inserted(plain, b"\xff\xd0"), "corrupt"
    yield "two start markers", SOI + plain, "corrupt"
    yield "two frame headers", _before_scan(plain, plain[plain.index(b"\xff\xc0") :][:19]), "corrupt"
    yield "a marker that is not known", inserted(plain, segment(0xF0, b"x")), "corrupt"
    yield "a header alone", plain[: scans(plain)[0]], "corrupt"
    yield "a header and an end", plain[: scans(plain)[0]] + EOI, "corrupt"
    yield "two bytes", SOI, "corrupt"
    yield "thousands of segments", inserted(plain, segment(0xFE, b"") * 20_000), "corrupt"


def _pngs() -> Found:
    rgb, grey = pixels(0), pixels(0)[..., 0]
    packed, header = zlib.compress(rows(rgb)), ihdr(rgb)

    def with_idat(*bodies: bytes) -> bytes:
        return SIGNATURE + header + b"".join(chunk(b"IDAT", body) for body in bodies) + IEND

    def with_header(**fields: int) -> bytes:
        return SIGNATURE + ihdr(rgb, **fields) + idat(rgb) + IEND

    yield "png", png(rgb), "kept"
    yield "png named wrongly.JPEG", png(grey), "kept"
    yield "interlaced", interlaced_png(rgb), "kept"
    yield "trailing bytes behind a png", png(rgb) + png(grey), "kept"
    yield "unknown chunk", png(rgb, chunk(b"abCd", b"x"), chunk(b"efGh")), "kept"
    yield "unknown critical chunk", png(rgb, chunk(b"ABCD")), "unknown chunk"
    yield "unknown critical chunk behind", png(rgb, after=chunk(b"ABCD")), "unknown chunk"
    yield "of an iphone", SIGNATURE + chunk(b"CgBI", b"\x50\0\x20\6") + png(rgb)[8:], "unknown chunk"
    bomb = zlib.compress(bytes(80_000_000))
    strict = {"iCCP", "gAMA", "pHYs", "bKGD"}  # of which Pillow, or DALI for the last, reads none that is short
    for name, body in {
        "tEXt": b"key\0value",
        "zTXt": b"key\0\0" + zlib.compress(b"value" * 100),
        "iTXt": b"key\0\1\0en\0key\0" + zlib.compress(b"value"),
        "iCCP": b"profile\0\0" + zlib.compress(b"no profile"),
        "gAMA": struct.pack(">I", 200_000),
        "pHYs": struct.pack(">IIB", 1, 1, 1),
        "sBIT": b"\5\5\5",
        "bKGD": bytes(6),
        "PLTE": bytes(48),
    }.items():
        kind = name.encode()
        yield name, png(rgb, chunk(kind, body)), "kept"
        yield (
            f"{name} of a wrong checksum",
            png(rgb, chunk(kind, body, crc=5)),
            "corrupt" if name == "PLTE" else "rewritten",
        )
        yield f"{name} cut short", png(rgb, chunk(kind, body[:3])), "rewritten" if name in strict else "kept"
    yield "zTXt that is damaged", png(rgb, chunk(b"zTXt", b"key\0\0garbage")), "kept"
    yield "zTXt of another method", png(rgb, after=chunk(b"zTXt", b"key\0\7garbage")), "rewritten"
    yield "zTXt of 80 MB", png(rgb, chunk(b"zTXt", b"key\0\0" + bomb)), "rewritten"
    yield "iCCP of 80 MB", png(rgb, chunk(b"iCCP", b"key\0\0" + bomb)), "rewritten"
    yield "transparent colour that is not used", png(rgb, chunk(b"tRNS", struct.pack(">3H", 1, 255, 0))), "rewritten"
    yield "transparent colour", png(grey, chunk(b"tRNS", struct.pack(">H", grey[0, 0]))), "transparent"
    yield "transparent colour cut short", png(rgb, chunk(b"tRNS", b"\0")), "corrupt"
    yield "palette", encoded(RGB.quantize(16), "PNG"), "rewritten"
    yield "opaque", encoded(RGB.convert("RGBA"), "PNG"), "rewritten"
    yield "16 bits", encoded(Image.fromarray(np.full((40, 56), 40_000, np.uint16)), "PNG"), "16-bit"
    frame = chunk(b"fcTL", struct.pack(">5I2H2B", 0, 56, 40, 0, 0, 1, 1, 0, 0))
    yield "animation", encoded(RGB, "PNG", save_all=True, append_images=[picture(1)]), "animated"
    yield "animation of one frame", png(rgb, chunk(b"acTL", struct.pack(">II", 1, 0)) + frame), "rewritten"
    yield "animation of no frames", png(rgb, chunk(b"acTL", bytes(8))), "rewritten"
    yield "animation cut short", png(rgb, chunk(b"acTL", b"\0")), "rewritten"
    yield "hundreds of thousands of chunks", png(rgb, chunk(b"tEXt", b"") * 250_000), "corrupt"
    yield "no end chunk", png(rgb)[:-12], "corrupt"
    yield "end chunk of a wrong checksum", png(rgb)[:-1] + b"\0", "rewritten"
    yield "header of a wrong checksum", SIGNATURE + header[:-1] + b"\0" + idat(rgb) + IEND, "corrupt"
    yield "pixels of a wrong checksum", SIGNATURE + header + chunk(b"IDAT", packed, crc=5) + IEND, "corrupt"
    yield "pixels in two chunks", with_idat(packed[:50], packed[50:]), "kept"
    yield (
        "pixels apart",
        png(rgb).replace(
            idat(rgb), chunk(b"IDAT", packed[:50]) + chunk(b"tEXt", b"a\0b") + chunk(b"IDAT", packed[50:])
        ),
        "corrupt",
    )
    yield "too few pixels", with_idat(zlib.compress(rows(rgb)[:-500])), "corrupt"
    yield "too many pixels in it", with_idat(zlib.compress(rows(rgb) + bytes(500))), "rewritten"
    yield "pixels cut off", with_idat(packed[:-100]), "corrupt"
    yield "pixels without their checksum", with_idat(packed[:-4]), "rewritten"
    yield "pixels of a wrong inner checksum", with_idat(packed[:-4] + b"abcd"), "corrupt"
    yield "pixels and zeros", with_idat(packed[:50] + bytes(100) + packed[150:]), "corrupt"
    yield "bytes behind the pixels", with_idat(packed + b"more"), "kept"
    yield "a window that is too small", with_idat(b"\x08\x1d" + packed[2:]), "rewritten"
    yield "a filter that does not exist", with_idat(zlib.compress(b"\x09" + rows(rgb)[1:])), "corrupt"
    yield "no pixels", SIGNATURE + header + IEND, "corrupt"
    yield "no rows", with_header(height=0), "corrupt"
    yield "two headers", SIGNATURE + header + png(rgb)[8:], "corrupt"
    yield "header behind another chunk", SIGNATURE + chunk(b"tEXt", b"a\0b") + png(rgb)[8:], "corrupt"
    yield "header of another compression", with_header(compression=1), "corrupt"
    yield "header of another filter", with_header(filters=1), "corrupt"
    yield "header of another interlace", with_header(interlaced=2), "corrupt"
    yield "header of an impossible depth", with_header(bits=3), "corrupt"
    yield "impossible name of a chunk", png(rgb, chunk(b"\1\2\3\4")), "corrupt"
    yield "a side of 1000001", png(np.zeros((1, 1_000_001), np.uint8)), "too many pixels"


def _others() -> Found:
    half = slice(0, 1500)
    yield "gif", encoded(RGB.quantize(16), "GIF"), "rewritten"
    yield "gif without its end", encoded(RGB.quantize(16), "GIF")[:-1], "rewritten"
    yield "gif cut off", encoded(NOISE.quantize(200), "GIF")[half], "corrupt"
    yield "gif of two frames", encoded(RGB, "GIF", save_all=True, append_images=[picture(1)]), "animated"
    yield "gif without a frame", b"GIF89a" + bytes(7) + b";", "corrupt"
    yield "bmp", encoded(RGB, "BMP"), "rewritten"
    yield "bmp cut off", encoded(RGB, "BMP")[half], "corrupt"
    yield "bmp of no size", encoded(RGB, "BMP")[:18] + bytes(8) + encoded(RGB, "BMP")[26:], "corrupt"
    yield "webp", encoded(RGB, "WEBP"), "rewritten"
    yield "webp named wrongly.jpg", encoded(RGB, "WEBP", lossless=True), "rewritten"
    yield "webp cut off", encoded(NOISE, "WEBP", lossless=True)[half], "corrupt"
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        tiff = encoded(NOISE, "TIFF", compression=compression)
        yield f"tiff, {compression}", tiff, "rewritten"
        yield f"tiff, {compression}, cut off", tiff[half], "corrupt"
    yield "tiff of two pages", encoded(RGB, "TIFF", save_all=True, append_images=[picture(1)]), "animated"
    yield "tiff of floats", encoded(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF"), "16-bit"
    for name, beginning in {
        "video": b"\0\0\0\x18ftypisom\0\0\2\0isommp41",
        "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl ",
        "Photoshop": b"8BPS\0\1",
        "PDF": b"%PDF-1.7\n",
        "Netpbm": b"P6\n56 40\n255\n",
    }.items():
        yield f"{name}.jpg", beginning + bytes(200), name
    yield "jpeg xl without a box.jpg", b"\xff\x0a" + bytes(200), "JPEG XL"
    for name, beginning in {
        "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "AVIF": b"\0\0\0\x1cftypmif1\0\0\0\0avifmif1miaf",
        "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ",
    }.items():
        yield f"{name} of a beginning alone.jpg", beginning + bytes(200), "corrupt"
    yield "jpeg 2000 without a box.jpg", encoded(RGB, "JPEG2000", no_jp2=True), "rewritten"
    yield "jpeg 2000 cut off", encoded(RGB, "JPEG2000")[:1000], "corrupt"
    yield "avif", encoded(RGB, "AVIF"), "rewritten"
    yield "avif cut off", encoded(RGB, "AVIF")[:500], "corrupt"
    yield "an error page alone.jpg", PAGE, "not an image"
    yield "no bytes.jpg", b"", "empty"
    yield "zeros.jpg", bytes(1000), "not an image"


def _factors(text: str) -> list[tuple[int, int]]:
    return [(int(across), int(down)) for across, down in text.split()]


def _before_scan(jpeg: bytes, more: bytes) -> bytes:
    at = scans(jpeg)[0]
    return jpeg[:at] + more + jpeg[at:]
