"""The HOG target against independent arithmetic, another library, and images drawn by hand."""

import numpy as np
import pytest
import torch
from skimage.feature import hog as skimage_hog

from pipeline.targets.hog.arithmetic import cell_of, hog_target, target_width, within_bins
from pipeline.targets.hog.target import Hog


def exact_hog(image: np.ndarray, patch: int = 16) -> np.ndarray:
    """Compute the definition in float64, with plain loops over cells; image is (3, H, W) integers."""
    _, height, width = image.shape
    cell = {14: 7, 28: 7, 20: 10}.get(patch, 8)
    cells = np.zeros((3, 9, height // cell, width // cell))
    for channel in range(3):
        x = np.pad(image[channel].astype(np.float64), 1, mode="reflect")
        gx = sum(w * (x[i : i + height, :width] - x[i : i + height, 2:]) for i, w in enumerate((1, 2, 1)))
        gy = sum(w * (x[:height, i : i + width] - x[2:, i : i + width]) for i, w in enumerate((1, 2, 1)))
        magnitude = np.hypot(gx, gy)
        bins = np.floor(np.arctan2(gx, gy) / np.pi * 9).astype(int) % 9
        for row in range(height // cell):
            for column in range(width // cell):
                here = (slice(row * cell, (row + 1) * cell), slice(column * cell, (column + 1) * cell))
                histogram = np.bincount(bins[here].ravel(), magnitude[here].ravel(), minlength=9)
                cells[channel, :, row, column] = histogram / max(np.linalg.norm(histogram), 1e-12)
    side = patch // cell
    return np.stack(
        [
            cells[:, :, r : r + side, c : c + side].ravel()
            for r in range(0, height // cell, side)
            for c in range(0, width // cell, side)
        ]
    )


@pytest.mark.parametrize(
    ("height", "width", "patch"),
    [(224, 224, 16), (96, 96, 16), (48, 32, 8), (64, 96, 32), (224, 42, 14), (28, 56, 28), (40, 60, 20)],
)
@pytest.mark.parametrize("kind", ["noise", "smooth", "dark"])
def test_equals_exact_arithmetic(height: int, width: int, patch: int, kind: str) -> None:
    rng = np.random.default_rng(height)
    images = rng.integers(0, 256, (2, 3, height, width), dtype=np.uint8)
    if kind == "smooth":  # long ramps: few distinct gradients, many exact ties
        images = (np.add.outer(np.arange(height), np.arange(width)) // 3 % 256 * np.ones((2, 3, 1, 1))).astype(np.uint8)
    if kind == "dark":
        images = (images < 3).astype(np.uint8)
    target = hog_target(torch.from_numpy(images), patch)
    assert target.dtype == torch.float32
    expected = np.stack([exact_hog(image, patch) for image in images])
    np.testing.assert_allclose(target.numpy(), expected, atol=2e-6)


def test_every_sobel_gradient_falls_in_its_exact_bin() -> None:
    """All 2041 x 2041 pairs of integer gradients, against atan2 in float64."""
    g = torch.arange(-1020, 1021, dtype=torch.float32)
    gx, gy = torch.meshgrid(g, g, indexing="ij")
    exact = np.floor(np.arctan2(gx.double().numpy(), gy.double().numpy()) / np.pi * 9).astype(int) % 9
    moving = (gx != 0) | (gy != 0)
    within = torch.stack(within_bins(gx, gy))
    assert (within.sum(0) == 1).all()
    assert torch.equal(within.int().argmax(0)[moving], torch.from_numpy(exact)[moving])


def test_agrees_with_skimage_on_a_cell_that_sees_one_orientation() -> None:
    """A ramp has the same HOG in skimage, which uses central differences of one channel, and bins from the other axis.

    On a linear ramp both see one constant gradient; skimage's bin b of 20 degrees counts from the x axis, ours from y.
    """
    for degrees in range(5, 180, 20):
        angle = np.deg2rad(degrees)
        y, x = np.mgrid[:32, :32]
        ramp = np.round(128 + 3.9 * (np.cos(angle) * x + np.sin(angle) * y - 16 * (np.cos(angle) + np.sin(angle))))
        image = np.repeat(ramp[None].clip(0, 255), 3, axis=0).astype(np.uint8)
        ours = hog_target(torch.from_numpy(image)[None]).reshape(2, 2, 3, 9, 2, 2)[0, 0, 0, :, 1, 1].numpy()
        theirs = skimage_hog(image[0], 9, (8, 8), (1, 1), block_norm="L2", feature_vector=False)[1, 1, 0, 0]
        assert ours.argmax() == int((90 - degrees) % 180 // 20)
        assert theirs.argmax() == degrees // 20


def test_hand_made_images() -> None:
    def bins(image: np.ndarray) -> np.ndarray:
        target = hog_target(torch.from_numpy(np.repeat(image[None, None], 3, axis=1)))
        return target.reshape(3, 9, 4)[0, :, 0].numpy()  # channel 0, every bin, the first cell

    edge = np.zeros((16, 16), dtype=np.uint8)
    edge[:, 4:] = 200
    np.testing.assert_array_equal(bins(edge), np.eye(9)[4])  # a vertical edge
    np.testing.assert_array_equal(bins(np.ascontiguousarray(edge.T)), np.eye(9)[0])  # a horizontal one
    np.testing.assert_array_equal(bins(np.full((16, 16), 77, dtype=np.uint8)), np.zeros(9))  # flat


def test_layout_is_channel_bin_row_column_and_patches_row_major() -> None:
    images = torch.zeros(1, 3, 32, 48, dtype=torch.uint8)
    images[0, 2, 24:32, 44:] = 255  # blue; the last cell of row 3, column 5: patch row 1, column 2
    target = hog_target(images).reshape(2, 3, 3, 9, 2, 2)
    assert target[1, 2, 2, 4, 1, 1] > 0.9
    assert target[:, :, :2].abs().sum() == 0


def test_memory_format_does_not_matter() -> None:
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(hog_target(images.to(memory_format=torch.channels_last)), hog_target(images))


@pytest.mark.parametrize(("patch", "cell"), [(14, 7), (16, 8), (32, 8)])
def test_strokes_lie_in_their_cells(patch: int, cell: int) -> None:
    """A vertical edge, seen by one cell of a patch, is a line down the middle of that cell, three times as large."""
    side = patch // cell
    described = torch.zeros(1, 2, 3, 3, 9, side, side)
    described[0, 1, 2, :, 4, 1, 0] = 1
    target = Hog(patch, compile=False)
    drawn = target.paint(torch.zeros(1, 3, 2 * patch, 3 * patch), described.flatten(3))[0, 0]
    assert drawn.shape == (2 * patch * 3, 3 * patch * 3)
    top, left, size = (patch + cell) * 3, 2 * patch * 3, cell * 3
    stroke = drawn[top : top + size, left : left + size]
    assert drawn.count_nonzero() == stroke.count_nonzero() > 0
    assert stroke.sum(0).argmax() in (size // 2 - 1, size // 2)
    assert (stroke.amax(1) > 0).all()


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        hog_target(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="do not divide"):
        hog_target(torch.zeros(1, 3, 40, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="17 pixels is not made of whole HOG cells, of 4 to 16 pixels a side"):
        target_width(17)


def test_the_cell_is_the_divisor_nearest_to_8() -> None:
    assert {patch: cell_of(patch) for patch in (4, 8, 10, 12, 14, 16, 20, 24, 28, 30, 32, 63)} == (
        {4: 4, 8: 8, 10: 10, 12: 6, 14: 7, 16: 8, 20: 10, 24: 8, 28: 7, 30: 6, 32: 8, 63: 7}
    )
    assert [target_width(patch) for patch in (8, 14, 16, 28, 32)] == [27, 108, 108, 432, 432]
