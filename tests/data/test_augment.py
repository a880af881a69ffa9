"""Crops and flips: inside the image, distributed as torchvision's, a function of the sample's key alone."""

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from pipeline.data.augment import centre_crops, random_flips, random_resized_crops, sample_keys
from pipeline.data.request import Shapes
from pipeline.data.settings import Data
from pipeline.data.views import View, view_boxes
from pipeline.random import derive, uniform

KEYS = sample_keys(0, np.zeros(20_000, dtype=np.int64), np.arange(20_000, dtype=np.int64))


def boxes(height: int, width: int, scale: tuple[float, float] = (0.5, 1.0)) -> np.ndarray:
    sides = np.full(len(KEYS), height, dtype=np.int32), np.full(len(KEYS), width, dtype=np.int32)
    return random_resized_crops(KEYS, *sides, scale, (3 / 4, 4 / 3))


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (64, 64), (300, 900), (3, 2), (1, 1)])
def test_boxes_lie_inside_the_image(height: int, width: int) -> None:
    top, left, crop_height, crop_width = boxes(height, width).T
    assert (top >= 0).all() and (left >= 0).all() and (crop_height > 0).all() and (crop_width > 0).all()
    assert (top + crop_height <= height).all() and (left + crop_width <= width).all()


@pytest.mark.parametrize(("height", "width"), [(375, 500), (300, 900)])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    """Mean and spread of every side over 20,000 draws, within a percent of the image."""
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.5, 1.0], [3 / 4, 4 / 3]) for _ in range(20_000)])
    ours = boxes(height, width)
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.01 * max(height, width))
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=0.01 * max(height, width))


def test_a_sample_is_cropped_the_same_in_any_batch_but_not_in_any_epoch() -> None:
    ids = np.arange(50, dtype=np.int64)
    sides = np.full(50, 200, dtype=np.int32), np.full(50, 300, dtype=np.int32)

    def crops(epoch: int, order: np.ndarray) -> np.ndarray:
        keys = sample_keys(7, np.full(50, epoch, dtype=np.int64), ids[order])
        return random_resized_crops(keys, *sides, (0.5, 1.0), (3 / 4, 4 / 3))

    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(crops(0, np.arange(50))[order], crops(0, order))
    assert (crops(0, np.arange(50)) != crops(1, np.arange(50))).any(axis=1).all()


def test_half_of_the_samples_are_flipped() -> None:
    assert random_flips(KEYS).mean() == pytest.approx(0.5, abs=0.01)


def test_centre_crops() -> None:
    sides = np.array([100, 300, 101], dtype=np.int32), np.array([300, 100, 101], dtype=np.int32)
    np.testing.assert_array_equal(centre_crops(*sides), [[0, 100, 100, 100], [100, 0, 100, 100], [0, 0, 101, 101]])


def test_centre_crops_of_a_ratio_are_transposed_with_the_images() -> None:
    heights, widths = np.array([100, 300, 101, 60], dtype=np.int32), np.array([300, 100, 101, 100], dtype=np.int32)
    wide = centre_crops(heights, widths, (5 / 3, 5 / 3))
    upright = centre_crops(widths, heights, (3 / 5, 3 / 5))
    np.testing.assert_array_equal(wide, upright[:, [1, 0, 3, 2]])
    np.testing.assert_array_equal(wide[:, 2:], [[100, 167], [60, 100], [61, 101], [60, 100]])


def sized(image_size: int | tuple[int, int]) -> Data:
    return Data.model_validate({"shards": "unread", "image_size": image_size})


def test_crops_have_the_ratio_of_the_inputs_times_torchvisions() -> None:
    """Mean and spread of the shape of boxes that need no second draw, and torchvision's boxes of the same ratio."""
    sides = np.full(len(KEYS), 400, dtype=np.int32), np.full(len(KEYS), 1200, dtype=np.int32)
    boxes = Shapes(*sides).random_boxes(KEYS, sized((192, 320)))
    torch.manual_seed(0)
    image, ratio = torch.empty(3, 400, 1200), [3 / 4 * 5 / 3, 4 / 3 * 5 / 3]
    theirs = np.array([RandomResizedCrop.get_params(image, [0.5, 1.0], ratio) for _ in range(20_000)])
    np.testing.assert_allclose(boxes.mean(0), theirs.mean(0), atol=12)
    np.testing.assert_allclose(boxes.std(0), theirs.std(0), atol=12)
    relative = np.log(boxes[:, 3] / boxes[:, 2] / (5 / 3))
    assert relative.min() > np.log(3 / 4) - 0.01 and relative.max() < np.log(4 / 3) + 0.01


def test_validation_and_views_have_the_ratio_of_the_inputs() -> None:
    heights, widths = np.array([240, 600, 300], np.int32), np.array([600, 500, 500], np.int32)
    shapes, data = Shapes(heights, widths), sized((192, 320))
    np.testing.assert_array_equal(shapes.centre_boxes(data, 0.5)[:, 2:], [[120, 200], [150, 250], [150, 250]])
    lefts, tops = ([0, 0, 0], [100, 0, 0], [200, 0, 0]), ([0, 0, 0], [0, 150, 0], [0, 300, 0])
    for crop in range(3):
        boxes = view_boxes(shapes, data, View(1, 0, 3, crop))
        np.testing.assert_array_equal(boxes.T, [tops[crop], lefts[crop], [240, 300, 300], [400, 500, 500]])
    np.testing.assert_array_equal(shapes.centre_boxes(data, 1), view_boxes(shapes, data, View(1, 0, 3, 1)))


def test_crops_of_squares_are_those_without_a_ratio() -> None:
    sides = np.full(len(KEYS), 375, dtype=np.int32), np.full(len(KEYS), 500, dtype=np.int32)
    shapes, data = Shapes(*sides), sized(224)
    np.testing.assert_array_equal(shapes.random_boxes(KEYS, data), boxes(375, 500))
    np.testing.assert_array_equal(shapes.centre_boxes(data, 0.875), centre_crops(*sides, share=0.875))


def test_randomness_is_the_same_in_numpy_and_torch() -> None:
    keys = np.random.default_rng(0).integers(-(2**63), 2**63, 1000)
    np.testing.assert_array_equal(derive(keys, 5), derive(torch.from_numpy(keys), 5).numpy())
    np.testing.assert_array_equal(
        derive(keys, keys[::-1].copy()), derive(torch.from_numpy(keys), torch.from_numpy(keys[::-1].copy())).numpy()
    )
    np.testing.assert_array_equal(uniform(keys), uniform(torch.from_numpy(keys)).double().numpy())
    draws = uniform(derive(keys[:, None], np.arange(100)))
    assert draws.min() >= 0 and draws.max() < 1
    assert draws.mean() == pytest.approx(0.5, abs=0.005)
