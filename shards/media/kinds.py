"""Recognise the format of a file that Pillow cannot read, by its first bytes."""

_BEGINNINGS = {
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0\x10\0\0\0CR": "camera raw",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"II\xbc\x01": "JPEG XR",
    b"FUJIFILMCCD-RAW": "camera raw",
    b"IIRO": "camera raw",
    b"IIU\0": "camera raw",
    b"8BPS": "Photoshop",
    b"gimp xcf": "GIMP",
    b"\0\0\1\0": "icon",
    b"DDS ": "DDS",
    b"qoif": "QOI",
    b"v/1\1": "OpenEXR",
    b"#?RADIANCE": "Radiance",
    b"\x8aMNG\r\n\x1a\n": "MNG",
    b"%PDF-": "PDF",
    b"\x1aE\xdf\xa3": "video",
}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"crx ": "camera raw"} | dict.fromkeys(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"
)


_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}  # their sizes in bytes


def kind_of(data: bytes) -> str | None:
    """Return the format of a file, or None for an unknown one."""
    if data[4:8] == b"ftyp":  # a family of formats: a file gives its own, then compatible ones
        brands = [data[8:12], *(data[at : at + 4] for at in range(16, min(len(data), data[3]), 4))]
        kinds = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
        return "AVIF" if "AVIF" in kinds else kinds[0] if kinds else "video"
    if data[:4] == b"RIFF":
        return {b"WEBP": "WEBP", b"AVI ": "video"}.get(data[8:12])
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if data[:1] == b"P" and data[1:2] in b"1234567" and data[2:3] in b" \t\r\n#":
        return "Netpbm"
    return next((kind for beginning, kind in _BEGINNINGS.items() if data.startswith(beginning)), None)
