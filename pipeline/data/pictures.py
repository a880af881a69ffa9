"""Read image files outside of data sets, as the crops of validation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.size import ImageSize, Sides
from pipeline.data.augment import centre_crops
from pipeline.data.decode.decoder import CpuDecoder
from pipeline.data.decode.graphs import Crops
from pipeline.data.errors import DataError
from shards.files import open_regular
from shards.media.image import IMAGE
from shards.media.media import MAX_BYTES, Checked, CheckOptions, Rejected


def read_pictures(paths: Sequence[Path | str], image_size: Sides, crop: float = 1.0) -> Tensor:
    """Return centre crops of image files, uint8 (B, 3, height, width), RGB, on the CPU.

    Files are checked as `maskfeat-shards build` does, turned as their EXIF says, and decoded and resized as in a run.

    Args:
        paths: one or more files.
        image_size: the side of square crops, or their height and width, in pixels.
        crop: share of the largest centred crop of that shape.

    Raises:
        DataError: a file cannot be read, or is not an image that can be used; the message names it.
    """
    files = [_checked(Path(path)) for path in paths]
    heights, widths = (np.array([getattr(file, side) for file in files], np.int32) for side in ("height", "width"))
    size = ImageSize.of(image_size)
    boxes = centre_crops(heights, widths, (size.aspect, size.aspect), crop)
    encoded: list[np.ndarray | None] = [np.frombuffer(file.data, np.uint8) for file in files]
    decoder = CpuDecoder(len(files), size, threads=1)
    try:
        decoder.feed(Crops(encoded, boxes, np.zeros(len(files), np.int32)))
        decoded = decoder.take()
    finally:
        decoder.close()
    for place, problem in decoded.problems.items():
        raise DataError(f"{paths[place]} cannot be decoded: {problem}")
    return torch.as_tensor(decoded.images)


def _checked(path: Path) -> Checked:
    try:
        with open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
        return IMAGE.check(data or b"", CheckOptions())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except Rejected as rejected:
        raise DataError(f"{path} cannot be used: {rejected.reason} ({rejected.detail})") from None
