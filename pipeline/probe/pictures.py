"""Draw features for people: nearest training images, and the last block's attention."""

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
_DARK = 0.2  # brightness without attention


def draw_attention(inputs: Tensor, looked: Tensor, colours: Tensor) -> Picture:
    """Draw each input beside a copy dimmed by attention and a map of its features: uint8 (height, width, 3).

    A clip is three rows of frames, the first frame of each row of `looked`. Attention is stretched from its least to
    its most in each input, and both maps are interpolated between patches.

    Args:
        inputs: uint8 images (B, 3, H, W), or clips (B, 3, frames, H, W).
        looked: attention, float (B, rows, columns), or for clips (B, frames, rows, columns), with at most as many
            frames.
        colours: colours of the patch features, see `principal_colours`.
    """
    frames = _frames(inputs, looked.shape[1] if looked.ndim == 4 else 1)  # (B, frames, 3, H, W)
    looked = looked.view(len(looked), 1, -1, *looked.shape[-2:])
    low, high = looked.amin((2, 3, 4), keepdim=True), looked.amax((2, 3, 4), keepdim=True)
    light = _enlarged((looked - low) / (high - low).clamp(min=1e-12), frames)
    dimmed = (frames * (_DARK + (1 - _DARK) * light)).to(torch.uint8)
    painted = (255 * _enlarged(colours.movedim(-1, 1), frames)).round().to(torch.uint8)
    names = ("attention", "PCA")
    if frames.shape[1] == 1:
        captions = [(name, _PLAIN) for name in ("image", *names)]
        return _sheet([([*panels], captions) for panels in torch.cat([frames, dimmed, painted], 1)])
    step = inputs.shape[2] // frames.shape[1]
    numbers = [(f"frame {step * index}", _PLAIN) for index in range(frames.shape[1])]
    rows = []
    for clip, *drawn in zip(frames, dimmed, painted, strict=True):
        rows.append((list(clip), numbers))
        rows += [(list(row), [(name, _PLAIN)] * len(row)) for row, name in zip(drawn, names, strict=True)]
    return _sheet(rows)


def principal_colours(features: Tensor) -> Tensor:
    """Return the first three principal components of patch features as red, green and blue, in [0, 1].

    Patches that have similar features have similar colours, in all inputs. Each component is stretched from its 2nd to
    its 98th percentile. After Oquab et al., "DINOv2", 2023, figure 1, without its threshold.

    Args:
        features: float (B, ..., width), of at least three patches.

    Returns:
        float (B, ..., 3).
    """
    flat = features.flatten(0, -2).double()
    flat = flat - flat.mean(0)
    _, vectors = torch.linalg.eigh(flat.T @ flat)  # ascending
    components = flat @ vectors[:, -3:].flip(1)
    low, high = components.quantile(torch.tensor([0.02, 0.98], dtype=flat.dtype, device=flat.device), 0)
    stretched = ((components - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    colours: Tensor = stretched.float().unflatten(0, features.shape[:-1])
    return colours


def _enlarged(values: Tensor, frames: Tensor) -> Tensor:
    """Return values of patches, (B, c, [frames,] rows, columns), at the pixels of frames: (B, frames, c, H, W)."""
    grid = values.view(*values.shape[:2], -1, *values.shape[-2:])
    size = (frames.shape[1], *frames.shape[3:])
    return F.interpolate(grid, size, mode="trilinear", align_corners=False).transpose(1, 2)


def still(inputs: Tensor) -> Tensor:
    """Return images that represent inputs: (B, 3, H, W) unchanged, for clips the frame in the middle."""
    return inputs if inputs.ndim == 4 else inputs[:, :, inputs.shape[2] // 2]


def draw_neighbours(
    images: Tensor,
    labels: Sequence[str],
    neighbours: Tensor,
    neighbour_labels: Sequence[Sequence[str]],
    cosines: Tensor,
) -> Picture:
    """Draw each image before its nearest training images, with green captions where the class is the same.

    Args:
        images: validation images, uint8 (q, 3, H, W), with their classes in `labels`.
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


def _frames(inputs: Tensor, count: int) -> Tensor:
    """Return `count` evenly spaced frames of each input, from the first: (B, count, 3, H, W); an image is one frame."""
    clips = inputs[:, :, None] if inputs.ndim == 4 else inputs
    return clips[:, :, :: max(1, clips.shape[2] // count)].transpose(1, 2)


def _sheet(rows: Sequence[tuple[Sequence[Tensor], Sequence[tuple[str, tuple[int, int, int]]]]]) -> Picture:
    """Draw rows of equal images, uint8 (3, H, W), each under its caption."""
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
