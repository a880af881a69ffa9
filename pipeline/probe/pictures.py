"""What features see, for a person: nearest training images, and where the last block looks."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Picture = NDArray[np.uint8]

_GAP = 4
_CAPTION = 14
_RIGHT, _WRONG, _PLAIN = (0, 120, 0), (190, 0, 0), (0, 0, 0)
_DARK = 0.2  # brightness where the last block does not look at all


def draw_attention(images: Tensor, looked: Tensor) -> Picture:
    """Each image beside itself in the light of `looked`, (B, rows, columns): uint8 (height, width, 3)."""
    lit = F.interpolate(looked[:, None], images.shape[2:], mode="nearest")
    lit = lit / lit.amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    dimmed = (images * (_DARK + (1 - _DARK) * lit)).to(torch.uint8)
    captions = [("image", _PLAIN), ("attention", _PLAIN)]
    return _sheet([([image, light], captions) for image, light in zip(images, dimmed, strict=True)])


def draw_neighbours(
    images: Tensor,
    labels: Sequence[str],
    neighbours: Tensor,
    neighbour_labels: Sequence[Sequence[str]],
    cosines: Tensor,
) -> Picture:
    """Each image before its nearest training images, captions green where the class is the same.

    Args:
        images: uint8 (q, 3, H, W) of the validation set, and `labels` their classes.
        neighbours: uint8 (q, k, 3, H, W), with their classes and cosines, (q, k).
    """
    rows = []
    for image, label, near, names, cosine in zip(
        images, labels, neighbours, neighbour_labels, cosines.tolist(), strict=True
    ):
        captions = [(label, _PLAIN)]
        captions += [
            (f"{value:.2f} {name}", _RIGHT if name == label else _WRONG)
            for name, value in zip(names, cosine, strict=True)
        ]
        rows.append(([image, *near], captions))
    return _sheet(rows)


def _sheet(rows: Sequence[tuple[Sequence[Tensor], Sequence[tuple[str, tuple[int, int, int]]]]]) -> Picture:
    """Rows of equal images, uint8 (3, H, W), each under its caption."""
    height, width = rows[0][0][0].shape[1:]
    down, across = height + _CAPTION + _GAP, width + _GAP
    sheet = Image.new("RGB", (across * len(rows[0][0]) - _GAP, down * len(rows)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for row, (images, captions) in enumerate(rows):
        for column, (image, (caption, colour)) in enumerate(zip(images, captions, strict=True)):
            while font.getlength(caption) > width and len(caption) > 1:
                caption = caption[:-1]
            pen.text((column * across, row * down), caption, fill=colour, font=font)
            pixels = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
            sheet.paste(pixels, (column * across, row * down + _CAPTION))
    return np.asarray(sheet)
