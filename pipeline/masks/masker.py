"""The interface of what draws masks, and the blocks of the paper."""

from typing import Protocol

from torch import Tensor

from model.layout import Layout, Mask, make_mask
from pipeline.masks.blocks import block_masks, masked_patches


class Masker(Protocol):
    """Draws masks, always the same from the same keys.

    Attributes:
        masked: predictions that each mask hides.
    """

    masked: int

    def __call__(self, keys: Tensor) -> Mask:
        """Draw a mask for each int64 key (B,), on the device of the keys and without waiting for it."""
        ...


class BlockMasker:
    """Masks made of rectangular blocks, see `block_masks`.

    Args:
        cells: grid that masks are drawn on.
        predictions: grid of the model's predictions, which `cells` divides.
        ratio: share of masked patches.
        compile: let torch compile the placement of a block, on a GPU.

    Raises:
        ValueError: the ratio leaves nothing to predict or nothing to see.
    """

    def __init__(self, cells: Layout, predictions: Layout, ratio: float, compile: bool) -> None:
        self._grid, self._ratio, self._compile = (cells.rows, cells.columns), ratio, compile
        self._predictions = predictions
        masked = masked_patches(self._grid, ratio)
        if not 0 < masked < cells.cells:
            raise ValueError(f"mask.ratio={ratio:g} leaves nothing to predict of a {cells} grid")
        self.masked = masked * (predictions.cells // cells.cells)

    def __call__(self, keys: Tensor) -> Mask:
        """See `Masker`."""
        cells = block_masks(keys, self._grid, self._ratio, compile=self._compile and keys.is_cuda)
        return make_mask(cells, self._predictions, self.masked * len(keys))
