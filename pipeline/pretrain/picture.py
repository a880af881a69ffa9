"""Draw the model's results for people: input, masked input, target, prediction.

For images, it is a sheet with one row per image. For clips, it is a sheet with four rows of frames per clip, and an
animation whose frames are sheets of images.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from model.layout import spread
from pipeline.targets.frames import described_frames
from pipeline.targets.hog.glyphs import ENLARGED
from pipeline.targets.target import Predictions, Target

Picture = NDArray[np.uint8]

_GAP = 6
_TITLE = 26
_HIDDEN = 110 / 255
_TINT = (1.0, 0.8, 0.35)  # of predictions, where the target has no colours of its own
_VISIBLE = 0.3  # brightness of the other patches
_ROW = 1800  # width of a row of frames, in pixels, above which pixels are not enlarged


@dataclass(frozen=True)
class Pictures:
    """Pictures of a few inputs, uint8 (height, width, 3) each.

    Attributes:
        sheet: everything at a glance.
        animation: for clips, one frame per described frame; for images, empty.
    """

    sheet: Picture
    animation: list[Picture]


def draw(
    target: Target, inputs: Tensor, mask: Tensor, targets: Tensor, outputs: Tensor, predictions: Predictions
) -> Pictures:
    """Draw a few inputs.

    Args:
        target: the target.
        inputs: uint8 images (B, 3, H, W), or clips (B, 3, frames, H, W).
        mask: cells of their masks, see `Mask`.
        targets: targets of all patches, (B, rows, columns, ...), for clips (B, frames, rows, columns, ...).
        outputs: outputs of the model, float (masked, width), in the order of `MaskFeat.forward`.
        predictions: those of the model.
    """
    layout = predictions.layout
    if layout.frames == 1:
        titles = (
            "image",
            "what the model sees",
            f"{target.label} of the image",
            f"{target.label} predicted where masked",
        )
        return Pictures(_across(titles, panels_of(target, inputs, mask, targets, outputs, predictions, ENLARGED)), [])
    scale = min(max(_ROW // (layout.frames * inputs.shape[-1]), 1), ENLARGED)
    titles = ("clip", "what the model sees", f"{target.label} of its frames", f"{target.label} predicted where masked")
    panels = [
        panel.view(-1, layout.frames, *panel.shape[1:])
        for panel in panels_of(target, inputs, mask, targets, outputs, predictions, scale)
    ]
    rows = [
        _across((title,), list(panel[clip, :, None]))
        for clip in range(len(inputs))
        for title, panel in zip(titles, panels, strict=True)
    ]
    return Pictures(
        np.concatenate(rows),
        [_across(titles, [panel[:, time] for panel in panels]) for time in range(layout.frames)],
    )


def panels_of(
    target: Target,
    inputs: Tensor,
    mask: Tensor,
    targets: Tensor,
    outputs: Tensor,
    predictions: Predictions,
    scale: int,
) -> list[Tensor]:
    """Draw image, masked image, target and prediction of each image, or of each described frame of clips.

    Args:
        target, inputs, mask, targets, outputs, predictions: see `draw`.
        scale: enlargement of the pixels.

    Returns:
        float64 (B, 3, H * scale, W * scale) in [0, 1] each, on the CPU; for clips, B counts all their frames.
    """
    layout = predictions.layout
    frames = described_frames(inputs, predictions).cpu()
    hidden = spread(mask, layout).view(len(frames), layout.rows, layout.columns).cpu()
    truth = targets.reshape(len(frames), layout.rows, layout.columns, *targets.shape[len(layout.shape) + 1 :]).cpu()
    guess = torch.zeros(*hidden.shape, outputs.shape[1])
    guess[hidden] = outputs.float().cpu()
    return _panels(target, frames, hidden, truth, guess, scale)


def _panels(target: Target, images: Tensor, hidden: Tensor, targets: Tensor, guess: Tensor, scale: int) -> list[Tensor]:
    """Draw the four panels of each image: float64 (B, 3, H * scale, W * scale) in [0, 1] each.

    Args:
        target: the target.
        images: uint8 (B, 3, H, W).
        hidden: bool (B, rows, columns).
        targets: (B, rows, columns, ...).
        guess: predictions of the hidden patches, float32 (B, rows, columns, width).
        scale: enlargement of the pixels.
    """
    size = [side * scale for side in images.shape[2:]]
    truth, shown = target.paint(images, targets), target.paint(images, targets, guess)
    pixels, truth, shown, covered = (
        # Averaging makes the strokes of HOG finer
        F.interpolate(panel.double(), size, mode="area" if panel.shape[-1] > size[-1] else "nearest")
        for panel in (images / 255, truth, shown, hidden[:, None])
    )
    tint = torch.tensor(_TINT).view(3, 1, 1) if shown.shape[1] == 1 else 1.0
    return [
        pixels,
        pixels.where(covered == 0, _HIDDEN),
        truth.expand_as(pixels),
        (shown * tint).where(covered > 0, truth * _VISIBLE),
    ]


def _across(titles: tuple[str, ...], panels: list[Tensor]) -> Picture:
    """Put panels (B, 3, height, width) side by side, one row per image, under a title for each panel or for all."""
    across = torch.cat([F.pad(panel, (0, _GAP, 0, _GAP), value=1.0) for panel in panels], dim=3)
    sheet = (across.transpose(0, 1).flatten(1, 2)[:, :-_GAP, :-_GAP] * 255).permute(1, 2, 0)
    width = panels[0].shape[3] if len(titles) > 1 else sheet.shape[1]
    return np.concatenate([_titles(titles, width), sheet.round().byte().numpy()])


def _titles(titles: tuple[str, ...], panel: int) -> Picture:
    sheet = Image.new("RGB", (panel * len(titles) + _GAP * (len(titles) - 1), _TITLE), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for index, title in enumerate(titles):
        while font.getlength(title) > panel and " " in title:  # small images: drop words, not letters
            title = title.rsplit(" ", 1)[0]
        pen.text((index * (panel + _GAP), 4), title, fill="black", font=font)
    return np.asarray(sheet)
