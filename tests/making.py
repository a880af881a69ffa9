"""Examples and masks for tests."""

import torch

from model.layout import Layout, Mask, make_mask
from pipeline.examples import ExampleMaker
from pipeline.masks.masker import BlockMasker
from pipeline.pixels import IMAGENET
from pipeline.targets.hog.target import Hog
from pipeline.targets.target import Predictions


def hog_examples(rows: int, columns: int, ratio: float = 0.4, compile: bool = False) -> ExampleMaker:
    """Make HOG examples in fp32 of images of rows x columns patches of 16 pixels."""
    grid = Layout(1, rows, columns)
    return ExampleMaker(
        Predictions(grid, (1, 16, 16)),
        BlockMasker(grid, grid, ratio, compile),
        Hog(16, compile),
        IMAGENET,
        torch.float32,
        fuse=compile,
    )


def mask_of(cells: torch.Tensor) -> Mask:
    """Make the mask of bool (B, rows, columns) for a model with the same grid of predictions."""
    return make_mask(cells, Layout(1, *cells.shape[1:]))
