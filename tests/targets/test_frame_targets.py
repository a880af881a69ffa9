"""Targets of clips: those of the frames that predictions are about, in the order of the model's predictions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from golden import clips as golden_clips

from model.layout import Layout, make_mask
from pipeline.examples import ExampleMaker
from pipeline.masks.cubes import cube_masks
from pipeline.masks.masker import masker_for
from pipeline.masks.settings import MaskSettings
from pipeline.pixels import Statistics, normalise
from pipeline.targets.frames import described_frames, mask_of_frames
from pipeline.targets.hog import hog_target
from pipeline.targets.pixels import pixel_target
from pipeline.targets.registry import build_target, macs, output_width
from pipeline.targets.settings import TargetSettings
from pipeline.targets.target import Computing, Predictions

CELLS, PREDICTIONS = Layout(4, 2, 3), Predictions(Layout(4, 4, 6), (2, 16, 16))
STATISTICS = Statistics((0.45, 0.4, 0.3), (0.225, 0.2, 0.5))
KEYS = torch.arange(3)
GOLDEN = Path(__file__).parents[1] / "golden"


def examples(kind: str) -> ExampleMaker:
    computing = Computing(torch.float32, KEYS.device, statistics=STATISTICS)
    target = build_target(TargetSettings(kind=kind), PREDICTIONS, computing)
    masker = masker_for(MaskSettings(), CELLS, PREDICTIONS.layout, compile=False)
    return ExampleMaker(PREDICTIONS, masker, target, STATISTICS, torch.float32, fuse=False)


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 8, 64, 96), dtype=torch.uint8)


def one_by_one(kind: str, frame: torch.Tensor) -> torch.Tensor:
    """Describe all patches of a frame, (3, 64, 96): (24, width)."""
    if kind == "hog":
        return hog_target(frame[None])[0]
    return pixel_target(frame[None], 16, torch.arange(24), STATISTICS)


@pytest.mark.parametrize("kind", ["hog", "pixels"])
def test_a_prediction_is_about_the_first_of_its_frames(kind: str, clips: torch.Tensor) -> None:
    """Targets of clip b, time t, row y, column x are those of the patch (y, x) of frame 2t as an image."""
    targets = examples(kind).targets(clips)
    assert targets.shape[:4] == (3, 4, 4, 6)
    for clip in range(3):
        for time in range(4):
            expected = one_by_one(kind, clips[clip, :, 2 * time])
            torch.testing.assert_close(targets[clip, time].flatten(0, 1), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["hog", "pixels"])
def test_examples_have_the_targets_under_the_cubes(kind: str, clips: torch.Tensor) -> None:
    maker = examples(kind)
    example = maker.example(clips, KEYS)
    assert torch.equal(example.inputs, normalise(clips, torch.float32, STATISTICS))
    assert torch.equal(example.mask.cells, cube_masks(KEYS, (4, 2, 3)))
    hidden = example.mask.cells.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(example.targets, maker.targets(clips)[hidden])
    assert len(example.targets) == 3 * maker.masker.masked


def test_frames_in_between_do_not_count(clips: torch.Tensor) -> None:
    maker, others = examples("hog"), clips.clone()
    others[:, :, 1::2] = 0
    assert torch.equal(maker.targets(others), maker.targets(clips))


def test_a_clip_of_one_frame_is_an_image() -> None:
    """Also where a prediction could be about two frames, as that of a tubelet."""
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    predictions = Predictions(Layout(1, 2, 2), (2, 16, 16))
    target = build_target(TargetSettings(), predictions, Computing(torch.float32, images.device))
    masker = masker_for(MaskSettings(ratio=0.5), Layout(1, 1, 2), predictions.layout, compile=False)
    maker = ExampleMaker(predictions, masker, target, STATISTICS, torch.float32, fuse=False)
    assert torch.equal(maker.targets(images[:, :, None]), hog_target(images).view(2, 2, 2, 108))
    assert torch.equal(maker.example(images[:, :, None], KEYS[:2]).targets, maker.example(images, KEYS[:2]).targets)


def test_a_teacher_sees_every_described_frame() -> None:
    settings = TargetSettings(kind="features", teacher="vit_tiny_patch16_224")
    one = macs(settings, Predictions(Layout(1, 4, 6), (1, 16, 16)))
    assert macs(settings, PREDICTIONS) == 4 * one > 0
    assert output_width(settings, PREDICTIONS) == 192


def test_hog_of_clips_is_that_of_the_published_code() -> None:
    """The labels that SlowFast's MaskMViT made of the golden clips, at the masked patches of its mask."""
    with np.load(GOLDEN / "video.npz") as file:
        published = torch.from_numpy(file["targets"])
    predictions = Predictions(Layout(4, 6, 6), (2, 16, 16))
    target = build_target(TargetSettings(), predictions, Computing(torch.float32, published.device))
    mask = make_mask(golden_clips.masks()[0], predictions.layout)
    described = target.describe(described_frames(golden_clips.clips(), predictions), mask_of_frames(mask, predictions))
    torch.testing.assert_close(described, published, atol=1e-6, rtol=0)
