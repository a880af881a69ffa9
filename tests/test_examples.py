"""Examples: targets of the masked patches in the model's order; the loss of known predictions."""

import pytest
import torch
from making import hog_examples

from pipeline.masks.blocks import block_masks
from pipeline.pixels import MEAN, STD, normalise
from pipeline.targets.hog import hog_target
from pipeline.targets.target import squared_errors


def test_targets_are_those_of_the_masked_patches() -> None:
    images, keys = torch.randint(0, 256, (3, 3, 96, 96), dtype=torch.uint8), torch.arange(3)
    example = hog_examples(6, 6).example(images, keys)
    assert torch.equal(example.mask.cells, block_masks(keys, (6, 6), 0.4))
    assert len(example.mask.indices) == int(example.mask.cells.sum()) == 3 * 14
    assert torch.equal(example.targets, hog_target(images)[example.mask.cells.flatten(1)])


def test_compiled_target_equals_the_reference() -> None:
    images, keys = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8).permute(0, 3, 1, 2), torch.arange(2)
    reference, compiled = (hog_examples(2, 2, 0.5, compile).example(images, keys).targets for compile in (False, True))
    torch.testing.assert_close(compiled, reference, atol=1e-6, rtol=0)


def test_normalisation_is_that_of_the_pretrained_transformers() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    expected = (images.double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(normalise(images, torch.float32).double(), expected, atol=1e-6, rtol=1e-6)
    assert normalise(images, torch.bfloat16).dtype == torch.bfloat16


def test_loss_of_predicting_zero_is_a_ninth_where_every_cell_has_an_edge() -> None:
    """Each cell's 9 numbers have unit length, so their mean square is 1/9."""
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    example = hog_examples(4, 4).example(images, torch.arange(4))
    errors = squared_errors(torch.zeros_like(example.targets), example.targets, 4)
    assert errors.shape == (4,)
    assert errors.tolist() == pytest.approx([1 / 9] * 4, rel=1e-5)
