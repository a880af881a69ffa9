"""Maskers: the kind that a recipe asks for, on the grid of the model, spread over its predictions."""

import pytest
import torch

from model.layout import Layout, spread
from pipeline.masks.blocks import block_masks
from pipeline.masks.cubes import cube_masks, frame_masks, tube_masks
from pipeline.masks.masker import masker_for
from pipeline.masks.settings import MaskSettings

KEYS = torch.arange(20)
CLIP, IMAGE = Layout(8, 7, 7), Layout(1, 14, 14)


@pytest.mark.parametrize(
    ("kind", "cells", "drawn"),
    [
        (None, IMAGE, block_masks(KEYS, (14, 14))),
        ("block", IMAGE, block_masks(KEYS, (14, 14))),
        (None, CLIP, cube_masks(KEYS)),
        ("cube", CLIP, cube_masks(KEYS)),
        ("tube", CLIP, tube_masks(KEYS)),
        ("frame", CLIP, frame_masks(KEYS)),
    ],
)
def test_masks_are_those_of_the_kind(kind: str | None, cells: Layout, drawn: torch.Tensor) -> None:
    predictions = Layout(cells.frames, 14, 14)
    masker = masker_for(MaskSettings(kind=kind), cells, predictions, compile=False)  # type: ignore[arg-type]
    mask = masker(KEYS)
    assert torch.equal(mask.cells, drawn)
    assert torch.equal(mask.indices, spread(drawn, predictions).flatten().nonzero()[:, 0])
    assert len(mask.indices) == len(KEYS) * masker.masked


@pytest.mark.parametrize(
    ("kind", "cells", "message"),
    [
        ("block", CLIP, r"mask\.kind=block masks images, and the masks of this model are 8x7x7 cells"),
        ("cube", IMAGE, r"mask\.kind=cube masks clips, and the masks of this model are 14x14 cells"),
        ("frame", Layout(1, 7, 7), r"mask\.kind=frame masks clips"),
    ],
)
def test_a_kind_that_does_not_fit_the_input_is_refused(kind: str, cells: Layout, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masker_for(MaskSettings(kind=kind), cells, cells, compile=False)  # type: ignore[arg-type]


def test_a_ratio_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask\.ratio=0\.1 leaves nothing to predict of a 4x7x7 grid"):
        masker_for(MaskSettings(kind="frame", ratio=0.1), Layout(4, 7, 7), Layout(4, 7, 7), compile=False)
    with pytest.raises(ValueError, match=r"mask\.ratio=0\.9 leaves nothing to see of a 4x7x7 grid"):
        masker_for(MaskSettings(kind="frame", ratio=0.9), Layout(4, 7, 7), Layout(4, 7, 7), compile=False)
