"""Read the EXIF orientation of an image as DALI does: a disagreement would swap height and width."""

import struct

TURNED = 5  # the first orientation that swaps height and width

_ORIENTATION = 0x0112
_SHORTS = {_ORIENTATION, 0x0128, 0x0213}
_STRINGS = {0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x8298}
_RATIONALS = {0x011A: 1, 0x011B: 1, 0x013E: 2, 0x013F: 6, 0x0211: 3, 0x0214: 6}  # and their number


def orientation(exif: bytes) -> int:
    """Return the orientation in EXIF data, 1 (upright) to 8.

    DALI's reader, which is OpenCV's, gives up on the whole block when a tag that it knows points beyond the end, and
    does not follow other tags; web images have many such blocks. It reads a block that is not marked as little-endian
    as big-endian. Pillow's reader gives up on other blocks, and also believes XMP.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = "<" if tiff[:2] == b"II" else ">"
    found = None
    try:
        mark, directory = struct.unpack_from(f"{order}HI", tiff, 2)
        if mark != 42:
            return 1
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
            (tag,) = struct.unpack_from(f"{order}H", tiff, entry)
            if tag in _SHORTS:
                (value,) = struct.unpack_from(f"{order}H", tiff, entry + 8)
                found = value if tag == _ORIENTATION and found is None else found
            elif tag in _STRINGS:
                (length,) = struct.unpack_from(f"{order}I", tiff, entry + 4)
                if length > 4:  # else the value is in the entry itself
                    (place,) = struct.unpack_from(f"{order}I", tiff, entry + 8)
                    struct.unpack_from(f"{length}x", tiff, place)
            elif tag in _RATIONALS:
                (place,) = struct.unpack_from(f"{order}I", tiff, entry + 8)
                struct.unpack_from(f"{8 * _RATIONALS[tag]}x", tiff, place)
    except struct.error:
        return 1
    return found if found is not None and 1 <= found <= 8 else 1
