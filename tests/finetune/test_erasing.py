"""Random erasing: boxes as timm draws them, noise in them and nowhere else."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from timm.data.random_erasing import RandomErasing

from pipeline.data.augment import sample_keys
from pipeline.finetune.erasing import erased_boxes, random_erasing

SIZE = 64


def keys(count: int) -> np.ndarray:
    return sample_keys(0, np.zeros(count, dtype=np.int64), np.arange(count, dtype=np.int64))


def box_of(image: torch.Tensor) -> tuple[int, int, int, int]:
    """Return top, left, height and width of the box that is not NaN."""
    rows, columns = (image.isfinite().any(0).any(dim).nonzero().flatten() for dim in (1, 0))
    return int(rows[0]), int(columns[0]), len(rows), len(columns)


def test_boxes_are_distributed_as_timms() -> None:
    """Mean and spread of every side, and of area and aspect, over 4,000 images; and how many images are erased."""
    random.seed(0)
    erase = RandomErasing(0.25, mode="pixel", max_count=1, device="cpu")
    blank = torch.full((16_000, 1, SIZE, SIZE), torch.nan)
    erased = erase(blank).isfinite().flatten(1).any(1)
    theirs = np.array([box_of(image) for image in blank[erased]])
    places, ours = erased_boxes(keys(16_000), SIZE, SIZE, 0.25, (0.02, 1 / 3), (0.3, 1 / 0.3))
    assert len(places) / 16_000 == pytest.approx(0.25, abs=0.012)
    assert len(theirs) / 16_000 == pytest.approx(0.25, abs=0.012)

    def described(boxes: np.ndarray) -> np.ndarray:
        top, left, height, width = boxes.T / SIZE
        return np.stack([top, left, top + height / 2, left + width / 2, height * width, np.log(height / width)], axis=1)

    np.testing.assert_allclose(described(ours).mean(0), described(theirs).mean(0), atol=0.025)
    np.testing.assert_allclose(described(ours).std(0), described(theirs).std(0), atol=0.02)
    for boxes in (ours, theirs):
        top, left, height, width = boxes.T
        assert (top >= 0).all() and (left >= 0).all()
        assert (top + height == SIZE).any() and (left + width == SIZE).any()  # the last row and column too
        assert (top + height <= SIZE).all() and (left + width <= SIZE).all()


def test_noise_is_standard_normal_and_inside_the_boxes_only() -> None:
    torch.manual_seed(0)
    images = torch.full((400, 3, SIZE, 48), torch.nan)
    erased = random_erasing(images, keys(400))
    assert erased is images
    places, boxes = erased_boxes(keys(400), SIZE, 48, 0.25, (0.02, 1 / 3), (0.3, 1 / 0.3))
    noisy = images.isfinite()
    np.testing.assert_array_equal(noisy.flatten(1).any(1).nonzero().flatten(), places)
    for place, box in zip(places, boxes, strict=True):
        assert box_of(images[place]) == tuple(box)
        assert noisy[place].sum() == 3 * box[2] * box[3]
    noise = images[noisy]
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(1, abs=0.01)
    of_first = images[places[0]][noisy[places[0]]].view(3, -1)
    assert torch.corrcoef(of_first).triu(1).abs().max() < 0.3  # every channel has noise of its own


def test_a_box_depends_on_its_key_alone() -> None:
    mine = keys(64)
    order = np.random.default_rng(0).permutation(64)

    def boxes(batch: np.ndarray) -> dict[int, Any]:
        places, found = erased_boxes(batch, 32, 48, 0.5, (0.02, 1 / 3), (0.3, 1 / 0.3))
        return {int(batch[place]): tuple(box) for place, box in zip(places, found, strict=True)}

    assert boxes(mine) == boxes(mine[order])
    assert 20 < len(set(boxes(mine).values())) < 44


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_type_and_memory_stay(dtype: torch.dtype) -> None:
    images = torch.zeros(32, 3, 32, 32, dtype=dtype).contiguous(memory_format=torch.channels_last)
    erased = random_erasing(images, keys(32), probability=1.0)
    assert erased.dtype == dtype and erased.is_contiguous(memory_format=torch.channels_last)
    assert erased.flatten(1).any(1).all()
    assert not random_erasing(torch.zeros(32, 3, 32, 32), keys(32), probability=0.0).any()
