"""Find images, by their headers, that must not be passed to DALI.

DALI 2.4 may end the process (SIGSEGV) where one image among several dozen in a batch has an unknown format, or a crop
outside the image. Damage after the header is an ordinary error there.
"""

import io
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.data.decode.graphs import Crops
from shards.media import jpeg
from shards.media.exif import TURNED, orientation
from shards.media.formats import FORMATS
from shards.media.image import IMAGE
from shards.media.media import Rejected


def readable(crops: Crops) -> tuple[Crops, dict[int, str]]:
    """Remove images with unreadable headers or crops outside of them. Return the crops, and the reasons by place."""
    problems: dict[int, str] = {}
    boxes = crops.boxes.reshape(len(crops.encoded), -1, 4)
    for place, encoded in enumerate(crops.encoded):
        if encoded is not None and (why := _why_not(encoded, boxes[place])):
            problems[place] = why
    if not problems:
        return crops, problems
    encoded_left = [None if place in problems else encoded for place, encoded in enumerate(crops.encoded)]
    return replace(crops, encoded=encoded_left), problems


def shown_size(image: bytes) -> tuple[int, int]:
    """Return height and width of an encoded image as displayed.

    Raises Rejected for a damaged header; Pillow raises nearly every other type.
    """
    if image.startswith(jpeg.SIGNATURE):
        probed = IMAGE.probe(image)
        return probed.height, probed.width
    with Image.open(io.BytesIO(image), formats=FORMATS) as header:
        turned = orientation(header.info.get("exif", b"")) >= TURNED
        return (header.width, header.height) if turned else (header.height, header.width)


def _why_not(encoded: NDArray[np.uint8], boxes: NDArray[np.int32]) -> str | None:
    try:
        height, width = shown_size(encoded.tobytes())
    except Rejected as error:
        return error.detail
    except UnidentifiedImageError:
        return f"not a readable {', '.join(FORMATS)} file"
    except Exception as error:  # as above
        return str(error) or type(error).__name__
    bottom, right = (boxes[:, :2] + boxes[:, 2:]).max(0).tolist()
    if bottom > height or right > width:
        return f"it is {width} x {height} pixels, not as when indexed"
    return None
