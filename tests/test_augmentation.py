"""Changes of colour and sharpness beside DALI's, whose definitions they follow, and their randomness."""

import math

import numpy as np
import pytest
import torch
from nvidia.dali import fn, pipeline_def

from pipeline.augmentation import Augment, augmented, blurred, colour_changes
from pipeline.data.augment import mask_keys, sample_keys

COLOURS = Augment(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter=0.8, grey=0.2)


@pytest.fixture
def images() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 256, (16, 3, 24, 32), dtype=torch.uint8)


@pytest.fixture
def keys() -> torch.Tensor:
    ids = np.arange(16, dtype=np.int64)
    return torch.from_numpy(mask_keys(sample_keys(0, np.zeros_like(ids), ids)))


def by_dali(images: torch.Tensor, operator: str, arguments: dict[str, torch.Tensor], **fixed: int) -> torch.Tensor:
    """Apply an operator of DALI's to each image with its own arguments."""

    @pipeline_def(batch_size=len(images), num_threads=1, device_id=None, prefetch_queue_depth=1)
    def graph():  # type: ignore[no-untyped-def]
        each = {name: fn.external_source(name=name) for name in arguments}
        return getattr(fn, operator)(fn.external_source(name="images", layout="HWC"), **each, **fixed)

    pipeline = graph()
    pipeline.build()
    pipeline.feed_input("images", images.permute(0, 2, 3, 1).contiguous().numpy())
    for name, values in arguments.items():
        pipeline.feed_input(name, values.numpy())
    return torch.from_numpy(np.array(pipeline.run()[0].as_array())).permute(0, 3, 1, 2)


def test_colours_are_those_of_dali(images: torch.Tensor) -> None:
    """Up to DALI's matrices, which are rounded to three digits."""
    generator = torch.Generator().manual_seed(1)
    brightness, contrast, saturation = 0.4 + 1.2 * torch.rand(3, 16, generator=generator)
    degrees = 360 * torch.rand(16, generator=generator) - 180
    matrix, summand = colour_changes(brightness, contrast, saturation, degrees * (math.pi / 180))
    got = (matrix @ images.flatten(2).float() + summand[:, None, None]).round().clamp(0, 255).view(images.shape)
    factors = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": degrees}
    difference = (got - by_dali(images, "color_twist", factors).float()).abs()
    assert difference.max() <= 2 and difference.mean() < 0.2


def test_blurring_is_that_of_dali(images: torch.Tensor) -> None:
    sigmas = torch.linspace(0.1, 2, 16)
    want = by_dali(images, "gaussian_blur", {"sigma": sigmas}, window_size=13)
    difference = (blurred(images.float(), sigmas).round() - want.float()).abs()
    assert difference.max() <= 1 and difference.mean() < 0.01
    assert (blurred(images.float(), sigmas)[0] - images[0]).abs().max() < 1e-3


def test_by_default_inputs_stay_what_they_are(images: torch.Tensor, keys: torch.Tensor) -> None:
    assert augmented(images, keys, Augment()) is images
    assert augmented(images, keys, Augment(brightness=0.4, hue=0.1, jitter=0)) is images


def test_what_is_drawn_depends_on_the_key_alone(images: torch.Tensor, keys: torch.Tensor) -> None:
    settings = COLOURS.model_copy(update={"blur": 0.5})
    together = augmented(images, keys, settings)
    assert together.dtype == torch.uint8 and together.shape == images.shape
    order = torch.randperm(16)
    assert torch.equal(augmented(images[order], keys[order], settings), together[order])
    halves = [augmented(images[part], keys[part], settings) for part in (slice(0, 5), slice(5, 16))]
    assert torch.equal(torch.cat(halves), together)
    assert not torch.equal(augmented(images, keys + 1, settings), together)


def test_frames_of_a_clip_change_alike(images: torch.Tensor, keys: torch.Tensor) -> None:
    settings = COLOURS.model_copy(update={"blur": 0.5})
    clips = torch.stack([images, images.flip(0), images.flip(1)], dim=2)
    got = augmented(clips, keys, settings)
    for frame in range(3):
        assert torch.equal(got[:, :, frame], augmented(clips[:, :, frame].contiguous(), keys, settings))


def test_as_many_change_as_is_said_and_by_as_much() -> None:
    """The test has 4,000 images of one colour; three standard errors of a share of a half are 2.4%."""
    colour = torch.tensor([120, 90, 60], dtype=torch.uint8).view(1, 3, 1, 1).expand(4000, 3, 1, 1)
    keys = torch.arange(4000)
    grey = augmented(colour, keys, Augment(grey=0.3)).flatten(1)
    is_grey = grey.amax(1) == grey.amin(1)
    assert is_grey.float().mean() == pytest.approx(0.3, abs=0.024)
    assert (grey[is_grey] == round(0.299 * 120 + 0.587 * 90 + 0.114 * 60)).all()
    assert (grey[~is_grey] == colour[0].flatten()).all()

    bright = augmented(colour, keys, Augment(brightness=0.5, jitter=0.5)).flatten(1)
    changed = bright[:, 0] != 120
    assert changed.float().mean() == pytest.approx(0.5, abs=0.03)
    assert 60 <= bright[:, 0].min() < 65 and 175 < bright[:, 0].max() <= 180
    assert bright[changed, 0].float().mean() == pytest.approx(120, abs=3)


def test_a_turn_of_the_hue_keeps_the_luma(images: torch.Tensor) -> None:
    none = torch.ones(16)
    matrix, summand = colour_changes(none, none, none, torch.linspace(-3, 3, 16))
    luma = torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(luma @ matrix, luma.expand(16, 3), atol=1e-6, rtol=0)
    assert not summand.any()
