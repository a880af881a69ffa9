"""Images that DALI must not be given, found by their headers.

DALI 2.4 may end the process (SIGSEGV) where one image of some dozens in a batch has no known format, or a crop outside
of it. Damage behind a header is an ordinary error there.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.data.decode.graphs import Crops
from shards.media.image import IMAGE
from shards.media.media import Rejected


def readable(crops: Crops) -> tuple[Crops, dict[int, str]]:
    """Return the crops without images whose headers cannot be read or that a crop does not lie in, and why by place."""
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
