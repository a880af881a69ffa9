"""Compute sine-cosine position embeddings."""

import math

import torch
from torch import Tensor

from model.layout import Layout


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Return the 2-D sine-cosine position embedding, float32 (rows * columns, width).

    The first half of the width encodes the column, the second the row, each as sines then cosines of frequencies
    10000^(-i / (width/4)), as in the code of He et al., "Masked Autoencoders Are Scalable Vision Learners".

    Raises:
        ValueError: the width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"sine-cosine positions need a width that is a multiple of 4, not {width}")
    frequency = torch.exp(torch.arange(width // 4) * (-math.log(10_000) / (width // 4)))
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = torch.stack([x.flatten(), y.flatten()])[..., None] * frequency  # (2, patches, width / 4)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).permute(1, 0, 2).flatten(1)


def sincos_cells(layout: Layout, width: int) -> Tensor:
    """Return the embedding of a grid's cells, float32 (cells, width): by place, for clips plus that by frame."""
    places = sincos_positions((layout.rows, layout.columns), width)
    if layout.frames == 1:
        return places
    return (sincos_frames(layout.frames, width)[:, None] + places).flatten(0, 1)


def sincos_frames(frames: int, width: int) -> Tensor:
    """Return the 1-D sine-cosine embedding of frames, float32 (frames, width): sin, cos of 10000^(-i / (width/2)).

    Raises:
        ValueError: the width is odd.
    """
    if width % 2:
        raise ValueError(f"sine-cosine positions of frames need an even width, not {width}")
    frequency = torch.exp(torch.arange(width // 2) * (-math.log(10_000) / (width // 2)))
    angles = torch.arange(frames)[:, None] * frequency
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
