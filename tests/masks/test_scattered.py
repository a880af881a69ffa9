"""Random masks: their size, their keys, and that no cell is likelier than another."""

import pytest
import torch

from model.layout import Layout
from pipeline.masks.masker import masker_for
from pipeline.masks.scattered import random_masks
from pipeline.masks.settings import MaskSettings

KEYS = torch.arange(4000)


@pytest.mark.parametrize(("grid", "masked"), [((14, 14), 147), ((6, 6), 27), ((8, 7, 7), 353), ((1, 2), 1)])
def test_every_mask_has_as_many_cells(grid: tuple[int, ...], masked: int) -> None:
    masks = random_masks(KEYS[:200], grid, masked)
    assert masks.shape == (200, *grid) and masks.dtype == torch.bool
    assert (masks.flatten(1).sum(1) == masked).all()


def test_a_mask_is_that_of_its_key_alone() -> None:
    masks = random_masks(KEYS[:50], (6, 6), 27)
    assert torch.equal(random_masks(KEYS[30:31], (6, 6), 27)[0], masks[30])
    assert torch.equal(random_masks(KEYS[:50].flip(0), (6, 6), 27).flip(0), masks)
    assert len({mask.numpy().tobytes() for mask in masks}) == 50


def test_cells_and_pairs_of_cells_are_equally_likely() -> None:
    hidden = random_masks(KEYS, (4, 4), 12).flatten(1).double()
    assert (hidden.mean(0) - 0.75).abs().max() < 4 * (0.75 * 0.25 / len(KEYS)) ** 0.5
    pairs = (hidden.T @ hidden / len(KEYS)).fill_diagonal_(12 / 16 * 11 / 15)
    assert (pairs - 12 / 16 * 11 / 15).abs().max() < 4.5 * (0.55 * 0.45 / len(KEYS)) ** 0.5


@pytest.mark.parametrize("layout", [Layout(1, 14, 14), Layout(8, 7, 7)])
def test_settings_choose_them_for_images_and_clips(layout: Layout) -> None:
    predictions = Layout(layout.frames, 14, 14)
    masker = masker_for(MaskSettings(kind="random", ratio=0.75), layout, predictions, compile=False)
    hidden = round(layout.cells * 0.75)
    assert masker.masked == hidden * (predictions.cells // layout.cells)
    mask = masker(KEYS[:3])
    assert torch.equal(mask.cells, random_masks(KEYS[:3], layout.shape, hidden))
    assert len(mask.indices) == 3 * masker.masked
    with pytest.raises(ValueError, match="leaves nothing to see"):
        masker_for(MaskSettings(kind="random", ratio=0.999), Layout(1, 2, 2), Layout(1, 2, 2), compile=False)
