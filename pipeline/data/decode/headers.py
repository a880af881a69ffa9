"""Images that DALI would find wrong before it decodes them, found here instead.

DALI 2.4 ends the process where it can, for a batch of some dozens of images, neither tell the format of one of them nor
cut its crop out: it gives up the batch while other threads still decode it. Damage behind a header is an error there.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.data.decode.graphs import Crops
from shards.media.image import IMAGE
from shards.media.media import Rejected


def readable(crops: Crops) -> tuple[Crops, dict[int, str]]:
    """Return the crops without the images whose headers do not fit them, and why by their places."""
    problems: dict[int, str] = {}
    boxes = crops.boxes.reshape(len(crops.encoded), -1, 4)
    for place, encoded in enumerate(crops.encoded):
        if encoded is not None and (why := _why_not(encoded, boxes[place])):
            problems[place] = why
    if not problems:
        return crops, problems
    encoded_left = [None if place in problems else encoded for place, encoded in enumerate(crops.encoded)]
    return replace(crops, encoded=encoded_left), problems


def _why_not(encoded: NDArray[np.uint8], boxes: NDArray[np.int32]) -> str | None:
    try:
        header = IMAGE.probe(encoded.tobytes())
    except Rejected as error:
        return error.detail
    bottom, right = (boxes[:, :2] + boxes[:, 2:]).max(0).tolist()
    if bottom > header.height or right > header.width:
        return f"it is {header.width} x {header.height} pixels, not as when indexed"
    return None
