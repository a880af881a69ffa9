"""Masks of clips: exactly as many cells in every mask, everywhere, with the published frequencies."""

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipeline.masks.blocks import block_masks
from pipeline.masks.cubes import cube_masks, frame_masks, masked_cells, masked_frames, tube_masks

Draw = Callable[..., torch.Tensor]

# How often the published code masks each cell of 8x7x7, over 20,000 masks of SlowFast's MaskingGenerator3D, which have
# 155.65 cells on average. Averaged over mirrored cells and over rows and columns: the first 4 of each side.
PUBLISHED = [
    [
        [0.0637, 0.1260, 0.1641, 0.1769],
        [0.1260, 0.2415, 0.3095, 0.3315],
        [0.1641, 0.3095, 0.3941, 0.4216],
        [0.1769, 0.3315, 0.4216, 0.4506],
    ],
    [
        [0.1082, 0.2091, 0.2700, 0.2903],
        [0.2091, 0.3880, 0.4882, 0.5200],
        [0.2700, 0.4882, 0.6060, 0.6425],
        [0.2903, 0.5200, 0.6425, 0.6805],
    ],
    [
        [0.1376, 0.2634, 0.3379, 0.3624],
        [0.2634, 0.4785, 0.5940, 0.6301],
        [0.3379, 0.5940, 0.7235, 0.7622],
        [0.3624, 0.6301, 0.7622, 0.8010],
    ],
    [
        [0.1526, 0.2912, 0.3716, 0.3980],
        [0.2912, 0.5224, 0.6437, 0.6817],
        [0.3716, 0.6437, 0.7755, 0.8143],
        [0.3980, 0.6817, 0.8143, 0.8523],
    ],
]
PUBLISHED_CELLS = 155.65
# The mean number of neighbours of which one is masked and the other is not: in time, rows and columns
PUBLISHED_BORDERS = [55.5, 45.0, 44.9]


@pytest.fixture(scope="module")
def masks() -> torch.Tensor:
    return torch.cat([cube_masks(keys) for keys in torch.arange(20_000).split(2_000)])


def test_every_mask_covers_exactly_157_of_392(masks: torch.Tensor) -> None:
    assert masks.shape == (20_000, 8, 7, 7)
    assert masks.dtype == torch.bool
    assert masked_cells((8, 7, 7)) == 157
    assert (masks.sum((1, 2, 3)) == 157).all()


def test_marginal_rates_are_the_published_ones(masks: torch.Tensor) -> None:
    rate = masks.double().mean(0)
    published = torch.tensor(PUBLISHED, dtype=torch.float64) * 157 / PUBLISHED_CELLS
    for side in range(3):  # the whole grid again: 4 of 8 frames, 4 of 7 rows and columns
        mirrored = published.flip(side) if side == 0 else published.narrow(side, 0, 3).flip(side)
        published = torch.cat([published, mirrored], side)
    assert published.shape == rate.shape
    assert (rate - published).abs().max() < 0.015


def test_masks_have_as_long_borders_as_the_published_ones(masks: torch.Tensor) -> None:
    """Masks of scattered cells would have 165 of them in time alone."""
    for side, published in enumerate(PUBLISHED_BORDERS, start=1):
        pairs = masks.shape[side] - 1
        borders = (masks.narrow(side, 0, pairs) != masks.narrow(side, 1, pairs)).sum() / len(masks)
        assert abs(borders - published) < 2, (side, borders)


def test_columns_hidden_in_all_frames_or_in_none_are_as_frequent_as_the_published_ones(masks: torch.Tensor) -> None:
    assert masks.all(1).double().mean() == pytest.approx(0.061, abs=0.005)
    assert (~masks).all(1).double().mean() == pytest.approx(0.278, abs=0.01)
    assert (~masks).all(3).all(2).double().mean() == pytest.approx(0.147, abs=0.01)


@pytest.mark.parametrize("draw", [cube_masks, tube_masks, frame_masks])
def test_a_mask_depends_on_its_key_alone(draw: Draw) -> None:
    keys = torch.randint(-(2**62), 2**62, (64,))
    together = draw(keys)
    order = torch.randperm(64)
    assert torch.equal(draw(keys[order]), together[order])
    assert torch.equal(draw(keys[:1])[0], together[0])
    assert len(torch.unique(together, dim=0)) > 30  # there are 56 masks of 3 of 8 frames


@pytest.mark.parametrize(
    ("grid", "ratio"), [((2, 2, 2), 0.5), ((4, 3, 3), 0.4), ((3, 1, 1), 0.4), ((5, 6, 9), 0.9), ((16, 7, 7), 0.25)]
)
def test_other_grids(grid: tuple[int, int, int], ratio: float) -> None:
    masks = cube_masks(torch.arange(2_000), grid, ratio)
    assert masks.shape == (2_000, *grid)
    assert (masks.sum((1, 2, 3)) == masked_cells(grid, ratio)).all()
    assert masks.any(0).all()


def test_tubes_are_the_same_blocks_in_all_frames() -> None:
    keys = torch.arange(100)
    masks = tube_masks(keys, (5, 7, 7), 0.4)
    assert masks.shape == (100, 5, 7, 7)
    assert all(torch.equal(masks[:, frame], block_masks(keys, (7, 7), 0.4)) for frame in range(5))


def test_frames_are_hidden_whole_and_equally_often() -> None:
    masks = frame_masks(torch.arange(8_000))
    assert masks.shape == (8_000, 8, 7, 7)
    assert torch.equal(masks.any(3).any(2), masks.all(3).all(2))
    assert masked_frames(8) == 3
    assert (masks[:, :, 0, 0].sum(1) == 3).all()
    assert (masks[:, :, 0, 0].double().mean(0) - 3 / 8).abs().max() < 0.025


@pytest.mark.parametrize("draw", [cube_masks, tube_masks, frame_masks])
@pytest.mark.parametrize("ratio", [0.0, 0.001, 1.0])
def test_impossible_ratios_are_refused(draw: Draw, ratio: float) -> None:
    with pytest.raises(ValueError, match="leaves nothing"):
        draw(torch.arange(2), (8, 7, 7), ratio)


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (cube_masks, "1f7603d91f215da926589735aecec7463b119a986ddf1320fb5509fab80984d3"),
        (tube_masks, "25ad7fa95f46bebc9e5f4fe59be6d9b51ff7aaa9633eb5f7655d1b114d00404a"),
        (frame_masks, "583c332677984876c76f58d4f3cf49e6a93e09fb26b15104b8e9a740c7a9a783"),
    ],
)
def test_masks_stay_what_they_were(draw: Draw, expected: str) -> None:
    """A run that goes on under a newer version must see the same masks."""
    bits = np.packbits(draw(torch.arange(1000)).numpy())
    assert hashlib.sha256(bits.tobytes()).hexdigest() == expected
