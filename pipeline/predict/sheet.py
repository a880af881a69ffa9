"""Draw a sheet of pictures in rows and columns, with titles and captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from model.size import ImageSize
from pipeline.predict.neighbours import Neighbours

Picture = NDArray[np.uint8]

_GAP, _MARGIN = 14, 18
_TITLE, _CAPTION = 20, 15  # sizes of the fonts in pixels
_INK, _PALE, _LABEL = (20, 20, 20), (110, 110, 110), (255, 255, 255)
_HIDDEN = 110  # brightness of hidden patches
_SMALLEST, _LARGEST = 288, 512  # longer sides of a panel in pixels
# A colour map from the weakest to the strongest attention: RGB at evenly spaced points
_HEAT = ((0.05, 0.03, 0.15), (0.42, 0.10, 0.43), (0.80, 0.28, 0.30), (0.97, 0.60, 0.20), (0.99, 0.95, 0.65))


@dataclass(frozen=True)
class Column:
    """Panels of all images under one title.

    Attributes:
        title: title of the column.
        panels: uint8 (height, width, 3), one for each image, all of one size.
        captions: captions below the panels, one for each; empty for none.
    """

    title: str
    panels: list[Picture]
    captions: list[str]


def panel_size(images: Tensor) -> ImageSize:
    """Return the size of the panels of images, (B, 3, H, W): a multiple of theirs, unless it is above the limit."""
    height, width = images.shape[2:]
    longer = max(height, width)
    panel = min(longer * ceil(_SMALLEST / longer), _LARGEST)
    return ImageSize(round(height * panel / longer), round(width * panel / longer))


def enlarged(images: Tensor, size: ImageSize) -> list[Picture]:
    """Return uint8 images, or floats in [0, 1], (B, 3, H, W), as panels, smoothly enlarged."""
    pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    resized = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
    return [picture.permute(1, 2, 0).mul(255).round().byte().numpy() for picture in resized]


def covered(images: Tensor, hidden: Tensor, size: ImageSize) -> list[Picture]:
    """Return images, (B, 3, H, W), as panels that are grey where `hidden`, bool (B, rows, columns)."""
    cells = F.interpolate(hidden[:, None].float(), size, mode="nearest-exact")[:, 0].bool().numpy()
    return [
        np.where(hides[..., None], np.uint8(_HIDDEN), panel)
        for panel, hides in zip(enlarged(images, size), cells, strict=True)
    ]


def heat(images: Tensor, looked: Tensor, size: ImageSize) -> list[Picture]:
    """Return panels of grey images with a heat map.

    Args:
        images: uint8 (B, 3, H, W).
        looked: float (B, rows, columns), stretched to the range of colours in each image.
        size: size of the panels.
    """
    low, high = looked.amin((1, 2), keepdim=True), looked.amax((1, 2), keepdim=True)
    stretched = (looked - low) / (high - low).clamp(min=1e-12)
    smooth = F.interpolate(stretched[:, None], size, mode="bicubic").clamp(0, 1)
    stops = torch.tensor(_HEAT)
    position = smooth[:, 0] * (len(stops) - 1)
    below = position.floor().clamp(max=len(stops) - 2).long()
    share = (position - below)[..., None]
    colours = (stops[below] * (1 - share) + stops[below + 1] * share).permute(0, 3, 1, 2)
    grey = F.interpolate(images.float() / 255, size, mode="bicubic", antialias=True).mean(1, keepdim=True)
    return enlarged(0.55 * colours + 0.45 * grey, size)


def mosaic(near: Neighbours, size: ImageSize) -> Picture:
    """Return a panel of neighbours in rows, nearest first, each with its cosine."""
    across = max(1, ceil(sqrt(len(near.images))))
    cell = ImageSize(*((side - (across - 1) * 4) // across for side in size))
    sheet = Image.new("RGB", (size.width, size.height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(min(max(11, cell.width // 10), _CAPTION))
    for index, (picture, cosine) in enumerate(zip(enlarged(near.images, cell), near.cosines.tolist(), strict=True)):
        left, top = index % across * (cell.width + 4), index // across * (cell.height + 4)
        sheet.paste(Image.fromarray(picture), (left, top))
        text = f"{cosine:.3f}"
        box = pen.textbbox((left + 5, top + 3), text, font=font)
        pen.rectangle((box[0] - 4, box[1] - 3, box[2] + 4, box[3] + 3), fill=_INK)
        pen.text((left + 5, top + 3), text, fill=_LABEL, font=font)
    return np.asarray(sheet)


def sheet(columns: Sequence[Column]) -> Picture:
    """Return all columns side by side: uint8 (height, width, 3)."""
    (height, width, _), rows = columns[0].panels[0].shape, len(columns[0].panels)
    title, caption = ImageFont.load_default(_TITLE), ImageFont.load_default(_CAPTION)
    down, across = height + _CAPTION + _GAP + 8, width + _GAP
    top = _MARGIN + _TITLE + 12
    size = (across * len(columns) - _GAP + 2 * _MARGIN, top + down * rows - _GAP + _MARGIN)
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    for number, column in enumerate(columns):
        left = _MARGIN + number * across
        pen.text((left, _MARGIN), fitting(column.title, title, width), fill=_INK, font=title)
        for row, (panel, said) in enumerate(zip(column.panels, column.captions, strict=True)):
            page.paste(Image.fromarray(panel), (left, top + row * down))
            pen.text((left, top + row * down + height + 5), fitting(said, caption, width), fill=_PALE, font=caption)
    return np.asarray(page)


def fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Shorten a text in its middle where it is wider than `width` pixels."""
    kept = len(text)
    shown = text
    while font.getlength(shown) > width and kept > 2:
        kept -= 1
        shown = f"{text[: (kept + 1) // 2]}...{text[len(text) - kept // 2 :]}"
    return shown
