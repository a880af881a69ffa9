"""What the model has learned, as a person can see it: image, masked image, target HOG, predicted HOG."""

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline.targets.hog import BINS, CELL, CHANNELS, hog_target

Picture = NDArray[np.uint8]

_SIDE = 24  # pixels a cell is drawn with: strokes need room
_GAP = 6
_TITLE = 26
_TITLES = ("image", "what the model sees", "HOG of the image", "HOG the model predicts (masked patches)")
_VISIBLE = 0.3  # brightness of strokes that were not predicted


def draw(images: Tensor, mask: Tensor, predictions: Tensor, patch: int) -> Picture:
    """A sheet with one row an image.

    Args:
        images: uint8 (B, 3, H, W).
        mask: bool (B, rows, columns).
        predictions: float (masked, 108), in the order of `MaskFeat.forward`.
        patch: side of a patch in pixels.

    Returns:
        uint8 (height, width, 3).
    """
    images, mask, predictions = images.cpu(), mask.cpu(), predictions.float().cpu()
    target = hog_target(images, patch)
    shown = torch.where(mask.flatten(1)[..., None], 0.0, target)
    shown[mask.flatten(1)] = predictions
    rows = []
    for image, hidden, truth, guess in zip(images, mask, target, shown, strict=True):
        pixels = image.permute(1, 2, 0).numpy().repeat(_SIDE // CELL, 0).repeat(_SIDE // CELL, 1)
        covered = (
            hidden.numpy().repeat(pixels.shape[0] // hidden.shape[0], 0).repeat(pixels.shape[1] // hidden.shape[1], 1)
        )
        masked = np.where(covered[..., None], np.uint8(110), pixels)
        strokes = _strokes(guess, hidden.shape)
        predicted = np.where(covered[..., None], strokes * np.array([1.0, 0.8, 0.35]), strokes * _VISIBLE)
        panels = [pixels, masked, _strokes(truth, hidden.shape).repeat(3, 2) * 255, predicted * 255]
        gap = np.full((pixels.shape[0], _GAP, 3), 255)
        rows.append(np.concatenate([part for panel in panels for part in (panel, gap)][:-1], 1))
        rows.append(np.full((_GAP, rows[0].shape[1], 3), 255))
    sheet = np.concatenate([_titles(images.shape[3] * _SIDE // CELL), *rows[:-1]])
    return sheet.clip(0, 255).astype(np.uint8)


def _strokes(target: Tensor, grid: torch.Size) -> NDArray[np.float64]:
    """Every cell's histogram as strokes along the edges it found: (height, width, 1) in [0, 1]."""
    side = math.isqrt(target.shape[1] // (CHANNELS * BINS))
    cells = target.double().reshape(*grid, CHANNELS, BINS, side, side).mean(2).clamp(min=0)  # one colour, not three
    drawn = np.einsum("rcbyx,bij->ryicxj", cells.numpy(), _glyphs())
    strokes: NDArray[np.float64] = drawn.reshape(grid[0] * side * _SIDE, grid[1] * side * _SIDE, 1).clip(0, 1)
    return strokes


@lru_cache(maxsize=1)
def _glyphs() -> NDArray[np.float64]:
    """One antialiased line a bin through the middle of a cell, (9, side, side), perpendicular to its gradients."""
    y, x = np.mgrid[:_SIDE, :_SIDE] - (_SIDE - 1) / 2
    # The gradient of bin b lies at (b + 1/2) * 20 degrees from the y axis towards x: the distance along it from
    # the middle is the distance from the line.
    angle = (np.arange(BINS)[:, None, None] + 0.5) * np.pi / BINS
    across = np.abs(np.sin(angle) * x + np.cos(angle) * y)
    along = np.abs(np.cos(angle) * x - np.sin(angle) * y)
    glyphs: NDArray[np.float64] = np.clip(1.6 - across, 0, 1) * np.clip(_SIDE / 2 - along, 0, 1)
    return glyphs


def _titles(panel: int) -> Picture:
    sheet = Image.new("RGB", (panel * 4 + _GAP * 3, _TITLE), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for index, title in enumerate(_TITLES):
        while font.getlength(title) > panel and " " in title:  # small images: drop words, not letters
            title = title.rsplit(" ", 1)[0]
        pen.text((index * (panel + _GAP), 4), title, fill="black", font=font)
    return np.asarray(sheet)
