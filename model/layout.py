"""Grids of cells over an image or a clip, and the masks on them."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """A grid of equal cells over an input. An image has one frame."""

    frames: int
    rows: int
    columns: int

    @property
    def cells(self) -> int:
        """The number of cells; they are numbered frame by frame, row-major."""
        return self.frames * self.rows * self.columns

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample's mask: (rows, columns) of an image, (frames, rows, columns) of a clip."""
        return (self.rows, self.columns) if self.frames == 1 else (self.frames, self.rows, self.columns)

    def __str__(self) -> str:
        return "x".join(str(side) for side in self.shape)


class Mask(NamedTuple):
    """The parts of a batch that are hidden from the model.

    Attributes:
        cells: bool (B, rows, columns) or (B, frames, rows, columns), True where hidden, equally many per sample.
        indices: int64 (masked,), ascending: the hidden cells of the flattened grids of predictions (B * cells).
    """

    cells: Tensor
    indices: Tensor


def make_mask(cells: Tensor, predictions: Layout, masked: int | None = None) -> Mask:
    """Make a mask for a model with this prediction grid.

    Args:
        cells: see `Mask`; their grid divides that of the predictions.
        predictions: grid of a sample's predictions.
        masked: the total number of hidden predictions. If given, shapes are static and nothing waits for the device.

    Raises:
        ValueError: the grid does not divide that of the predictions.
    """
    hidden = spread(cells, predictions).flatten()
    if masked is None:
        return Mask(cells, hidden.nonzero()[:, 0])
    return Mask(cells, torch.nonzero_static(hidden, size=masked)[:, 0])


def mask_of_all(batch_size: int, predictions: Layout, device: torch.device) -> Mask:
    """Make a mask that hides every cell of a batch."""
    cells = torch.ones(batch_size, *predictions.shape, dtype=torch.bool, device=device)
    return make_mask(cells, predictions, cells.numel())


def spread(cells: Tensor, layout: Layout) -> Tensor:
    """Repeat each cell of a mask over the cells of a finer grid.

    Args:
        cells: (B, rows, columns) or (B, frames, rows, columns).
        layout: the finer grid.

    Returns:
        (B, layout.cells).

    Raises:
        ValueError: `cells` is not bool, or its grid does not divide `layout`.
    """
    if cells.dtype != torch.bool or cells.ndim not in (3, 4) or 0 in cells.shape:
        raise ValueError(f"a mask is bool (B, rows, columns) or (B, frames, rows, columns), not {tuple(cells.shape)}")
    whole = cells[:, None] if cells.ndim == 3 else cells
    for dimension, side in enumerate((layout.frames, layout.rows, layout.columns), start=1):
        times, rest = divmod(side, whole.shape[dimension])
        if rest or not times:
            raise ValueError(f"a mask of {tuple(cells.shape[1:])} cells does not divide a grid of {layout} cells")
        if times > 1:
            whole = whole.repeat_interleave(times, dim=dimension)
    return whole.flatten(1)
