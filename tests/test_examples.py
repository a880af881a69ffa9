"""Examples: targets of the masked patches in the model's order; the loss of known predictions."""

import pytest
import torch
from making import hog_examples

from pipeline.build import build_examples, build_model
from pipeline.config import load_recipe
from pipeline.masks.blocks import block_masks
from pipeline.pixels import IMAGENET, Statistics, normalise
from pipeline.targets.hog import hog_target
from pipeline.targets.pixels import pixel_target
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
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    expected = (images.double() / 255 - mean) / std
    torch.testing.assert_close(normalise(images, torch.float32).double(), expected, atol=1e-6, rtol=1e-6)
    assert normalise(images, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["hog", "pixels"])
def test_inputs_and_targets_are_normalised_as_the_recipe_says(kind: str) -> None:
    own = Statistics((0.45, 0.4, 0.3), (0.225, 0.2, 0.5))
    told = [f"model.mean={list(own.mean)}", f"model.std={list(own.std)}", f"target.kind={kind}"]
    recipe = load_recipe("small", ["data.shards=unused", "data.image_size=32", *told])
    images, keys = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), torch.arange(2)
    example = build_examples(recipe, build_model(recipe), torch.float32, keys.device).example(images, keys)
    assert torch.equal(example.inputs, normalise(images, torch.float32, own))
    if kind == "pixels":
        torch.testing.assert_close(example.targets, pixel_target(images, 16, example.mask.indices, own))
        assert not torch.allclose(example.targets, pixel_target(images, 16, example.mask.indices))


@pytest.mark.parametrize(("kind", "of_images"), [(None, "block"), ("tube", "block"), ("random", "random")])
@pytest.mark.parametrize(("repeats", "target"), [(1, "hog"), (2, "hog"), (1, "pixels")])
def test_examples_of_images_beside_clips_are_those_of_single_frames(
    kind: str | None, of_images: str, repeats: int, target: str
) -> None:
    recipes = {
        frames: load_recipe(
            "small_video",
            ["data.shards=unused", "data.image_size=64", f"data.frames={frames}", f"target.kind={target}"]
            + [f"mask.kind={kind if frames > 1 else of_images}"] * (kind is not None),
        )
        for frames in (1, 4)
    }
    images, clips = (torch.randint(0, 256, (2, 3, frames, 64, 64), dtype=torch.uint8) for frames in (1, 4))
    keys = torch.arange(2)
    both, alone, of_clips = (
        build_examples(recipes[frames], build_model(recipes[frames]), torch.float32, keys.device, single_frames=mixed)
        for frames, mixed in ((4, True), (1, False), (4, False))
    )
    for inputs, made, expected in ((images, both.of(images), alone), (clips, both.of(clips), of_clips)):
        example, other = made.example(inputs, keys, repeats), expected.example(inputs, keys, repeats)
        assert torch.equal(example.inputs, other.inputs) and torch.equal(example.targets, other.targets)
        assert all(torch.equal(one, another) for one, another in zip(example.mask, other.mask, strict=True))
    assert both.of(images).target is both.of(clips).target and alone.of(images) is alone


def test_loss_of_predicting_zero_is_a_ninth_where_every_cell_has_an_edge() -> None:
    """Each cell's 9 numbers have unit length, so their mean square is 1/9."""
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    example = hog_examples(4, 4).example(images, torch.arange(4))
    errors = squared_errors(torch.zeros_like(example.targets), example.targets, 4)
    assert errors.shape == (4,)
    assert errors.tolist() == pytest.approx([1 / 9] * 4, rel=1e-5)
