"""The interface of a masker, which draws masks, and its kinds."""

from typing import Protocol

from torch import Tensor

from model.layout import Layout, Mask, make_mask
from pipeline.masks.blocks import block_masks, masked_patches
from pipeline.masks.cubes import cube_masks, frame_masks, masked_cells, masked_frames, tube_masks
from pipeline.masks.scattered import random_masks
from pipeline.masks.settings import MaskSettings


class Masker(Protocol):
    """Draws masks, always the same for the same keys.

    Attributes:
        masked: number of predictions that each mask hides.
    """

    masked: int

    def __call__(self, keys: Tensor) -> Mask:
        """Draw a mask for each int64 key (B,), on the device of the keys and without waiting for it."""
        ...


class _GridMasker:
    """The common part of maskers: the grids, and the number of hidden cells.

    Args:
        cells: grid of the masks.
        predictions: grid of the model's predictions, which `cells` divides.
        ratio: share of masked cells.
        compile: on a GPU, draw the masks by one kernel, if there is one.

    Raises:
        ValueError: the ratio leaves no cell hidden, or none visible.
    """

    def __init__(self, cells: Layout, predictions: Layout, ratio: float, compile: bool) -> None:
        self._cells, self._ratio, self._compile = cells, ratio, compile
        self._predictions = predictions
        hidden = self._hidden()
        if not 0 < hidden < cells.cells:
            what = "see" if hidden else "predict"
            raise ValueError(f"mask.ratio={ratio:g} leaves nothing to {what} of a {cells} grid")
        self.masked = hidden * (predictions.cells // cells.cells)

    def __call__(self, keys: Tensor) -> Mask:
        """See `Masker`."""
        return make_mask(self._draw(keys), self._predictions, self.masked * len(keys))

    @property
    def _grid(self) -> tuple[int, int, int]:
        return self._cells.frames, self._cells.rows, self._cells.columns

    def _hidden(self) -> int:
        """Return the number of cells that each mask hides."""
        raise NotImplementedError

    def _draw(self, keys: Tensor) -> Tensor:
        """Draw the cells of masks: bool (B, *cells.shape)."""
        raise NotImplementedError


class BlockMasker(_GridMasker):
    """Masks of images made of rectangular blocks, see `block_masks` and `_GridMasker`."""

    def _hidden(self) -> int:
        return masked_patches(self._grid[1:], self._ratio)

    def _draw(self, keys: Tensor) -> Tensor:
        return block_masks(keys, self._grid[1:], self._ratio, self._compile)


class CubeMasker(_GridMasker):
    """Masks of clips made of blocks of space and time, see `cube_masks` and `_GridMasker`."""

    def _hidden(self) -> int:
        return masked_cells(self._grid, self._ratio)

    def _draw(self, keys: Tensor) -> Tensor:
        return cube_masks(keys, self._grid, self._ratio, self._compile)


class TubeMasker(_GridMasker):
    """Masks of clips made of blocks of all frames, see `tube_masks` and `_GridMasker`."""

    def _hidden(self) -> int:
        return masked_patches(self._grid[1:], self._ratio) * self._cells.frames

    def _draw(self, keys: Tensor) -> Tensor:
        return tube_masks(keys, self._grid, self._ratio, self._compile)


class FrameMasker(_GridMasker):
    """Masks of clips made of whole frames, see `frame_masks` and `_GridMasker`."""

    def _hidden(self) -> int:
        return masked_frames(self._cells.frames, self._ratio) * (self._cells.rows * self._cells.columns)

    def _draw(self, keys: Tensor) -> Tensor:
        return frame_masks(keys, self._grid, self._ratio)


class RandomMasker(_GridMasker):
    """Masks of cells that are drawn one by one, see `random_masks` and `_GridMasker`."""

    def _hidden(self) -> int:
        return round(self._cells.cells * self._ratio)

    def _draw(self, keys: Tensor) -> Tensor:
        return random_masks(keys, self._cells.shape, self._hidden())


_OF_CLIPS: dict[str, type[_GridMasker]] = {"cube": CubeMasker, "tube": TubeMasker, "frame": FrameMasker}


def of_single_frames(settings: MaskSettings) -> MaskSettings:
    """Return the settings of the masks of single frames beside clips: blocks instead of cubes and tubes.

    Raises:
        ValueError: the masks of clips hide whole frames.
    """
    if settings.kind == "frame":
        raise ValueError(
            "mask.kind=frame hides whole frames, and the images of data.mixture have one: leave out mask.kind, or the "
            "images"
        )
    return settings.model_copy(update={"kind": None if settings.kind in _OF_CLIPS else settings.kind})


def masker_for(settings: MaskSettings, cells: Layout, predictions: Layout, compile: bool) -> Masker:
    """Build the masker of the settings; the default is blocks for images and cubes for clips.

    Args:
        settings: kind and ratio.
        cells, predictions, compile: see `_GridMasker`.

    Raises:
        ValueError: the kind does not fit the grid, or the ratio leaves no cell hidden, or none visible.
    """
    of_clips = cells.frames > 1
    kind = settings.kind or ("cube" if of_clips else "block")
    if kind == "random":
        return RandomMasker(cells, predictions, settings.ratio, compile)
    if (kind in _OF_CLIPS) != of_clips:
        wanted = "clips" if kind in _OF_CLIPS else "images"
        raise ValueError(
            f"mask.kind={kind} masks {wanted}, and the masks of this model are {cells} cells: leave out mask.kind"
        )
    return _OF_CLIPS.get(kind, BlockMasker)(cells, predictions, settings.ratio, compile)
