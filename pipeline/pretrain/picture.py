"""What the model has learned, as a person can see it: image, masked image, target, prediction."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from pipeline.targets.hog.glyphs import ENLARGED
from pipeline.targets.target import Target

Picture = NDArray[np.uint8]

_GAP = 6
_TITLE = 26
_HIDDEN = 110 / 255
_TINT = (1.0, 0.8, 0.35)  # of what was predicted, where the target has no colours of its own
_VISIBLE = 0.3  # brightness of what was not predicted


def draw(target: Target, images: Tensor, mask: Tensor, targets: Tensor, predictions: Tensor) -> Picture:
    """A sheet with one row an image.

    Args:
        target: what is predicted.
        images: uint8 (B, 3, H, W).
        mask: bool (B, rows, columns).
        targets: (B, rows, columns, ...), of all patches.
        predictions: float (masked, width), in the order of `MaskFeat.forward`.

    Returns:
        uint8 (height, width, 3).
    """
    images, mask, targets, predictions = images.cpu(), mask.cpu(), targets.cpu(), predictions.float().cpu()
    guess = torch.zeros(*mask.shape, predictions.shape[1])
    guess[mask] = predictions
    truth, shown = target.paint(images, targets), target.paint(images, targets, guess)
    pixels, truth, shown, hidden = (
        F.interpolate(panel.double(), [side * ENLARGED for side in images.shape[2:]])
        for panel in (images / 255, truth, shown, mask[:, None])
    )
    tint = torch.tensor(_TINT).view(3, 1, 1) if shown.shape[1] == 1 else 1.0
    covered = hidden > 0
    panels = [
        pixels,
        pixels.where(~covered, _HIDDEN),
        truth.expand_as(pixels),
        (shown * tint).where(covered, truth * _VISIBLE),
    ]
    across = torch.cat([F.pad(panel, (0, _GAP, 0, _GAP), value=1.0) for panel in panels], dim=3)
    sheet = (across.transpose(0, 1).flatten(1, 2)[:, :-_GAP, :-_GAP] * 255).permute(1, 2, 0)
    titles = ("image", "what the model sees", f"{target.label} of the image", f"{target.label} predicted where masked")
    return np.concatenate([_titles(titles, pixels.shape[3]), sheet.round().byte().numpy()])


def _titles(titles: tuple[str, ...], panel: int) -> Picture:
    sheet = Image.new("RGB", (panel * len(titles) + _GAP * (len(titles) - 1), _TITLE), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for index, title in enumerate(titles):
        while font.getlength(title) > panel and " " in title:  # small images: drop words, not letters
            title = title.rsplit(" ", 1)[0]
        pen.text((index * (panel + _GAP), 4), title, fill="black", font=font)
    return np.asarray(sheet)
