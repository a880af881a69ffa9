"""Block masks: exactly as many patches in every mask, everywhere, with the published frequencies."""

import hashlib

import numpy as np
import pytest
import torch

from pipeline.masks.blocks import block_masks, masked_patches


@pytest.fixture(scope="module")
def masks() -> torch.Tensor:
    return block_masks(torch.arange(20_000))


def test_every_mask_covers_exactly_78_of_196(masks: torch.Tensor) -> None:
    assert masks.shape == (20_000, 14, 14)
    assert masks.dtype == torch.bool
    assert masked_patches((14, 14)) == 78
    assert (masks.sum((1, 2)) == 78).all()


def test_marginal_rates_are_the_published_ones(masks: torch.Tensor) -> None:
    """Corner 0.045 and centre 0.73 were measured on 20,000 masks of the published code."""
    rate = masks.float().mean(0)
    corners = torch.stack([rate[0, 0], rate[0, -1], rate[-1, 0], rate[-1, -1]])
    centre = rate[6:8, 6:8]
    assert ((corners - 0.045).abs() < 0.008).all(), corners
    assert ((centre - 0.73).abs() < 0.02).all(), centre
    assert rate.min() > 0.03  # every patch is reached, the last row and column too
    assert (rate - rate.flip(0)).abs().max() < 0.02
    assert (rate - rate.flip(1)).abs().max() < 0.02
    assert (rate - rate.T).abs().max() < 0.02


def test_masks_are_blocks(masks: torch.Tensor) -> None:
    """More than three in four neighbours of a masked patch are masked; scattered patches would have 40%."""
    beside = (masks[:, :, 1:] & masks[:, :, :-1]).sum() / masks[:, :, :-1].sum()
    assert beside > 0.75


def test_a_mask_depends_on_its_key_alone() -> None:
    keys = torch.randint(-(2**62), 2**62, (64,))
    together = block_masks(keys)
    order = torch.randperm(64)
    assert torch.equal(block_masks(keys[order]), together[order])
    assert torch.equal(block_masks(keys[:1])[0], together[0])
    assert len(torch.unique(together, dim=0)) == 64


@pytest.mark.parametrize(
    ("grid", "ratio"), [((6, 6), 0.4), ((2, 2), 0.5), ((16, 16), 0.4), ((7, 20), 0.25), ((24, 24), 0.75)]
)
def test_other_grids(grid: tuple[int, int], ratio: float) -> None:
    masks = block_masks(torch.arange(2_000), grid, ratio)
    assert masks.shape == (2_000, *grid)
    assert (masks.sum((1, 2)) == masked_patches(grid, ratio)).all()
    assert masks.any(0).all()


@pytest.mark.parametrize("ratio", [0.0, 0.001, 1.0])
def test_impossible_ratios_are_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="leaves nothing"):
        block_masks(torch.arange(2), (14, 14), ratio)


def test_masks_stay_what_they_were() -> None:
    """A run that goes on under a newer version must see the same masks."""
    bits = np.packbits(block_masks(torch.arange(1000)).numpy())
    assert (
        hashlib.sha256(bits.tobytes()).hexdigest() == "d8e825a21101d2a269d8ea15746ea650fdd4eefbee3d50a3bbe7d6ac3b6dc523"
    )
