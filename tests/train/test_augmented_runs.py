"""Runs on varied images: what is drawn depends on seed, epoch and sample only; validation images stay as they are."""

import json
from pathlib import Path

import pytest
from launching import assert_same_weights, launch, losses, pretrain

from pipeline.checkpoints.checkpoint import CheckpointError

VARIED = (
    "augment.brightness=0.4",
    "augment.contrast=0.4",
    "augment.saturation=0.4",
    "augment.hue=0.2",
    "augment.jitter=0.8",
    "augment.grey=0.2",
    "augment.blur=0.5",
)


def test_a_varied_run_resumes_bit_for_bit_and_is_validated_as_any_other(shards: Path, tmp_path: Path) -> None:
    validated = [f"data.validation={shards}", "run.eval_every=2", "engine.micro_batch=8"]
    for name, settings, steps in (("plain", (), 4), ("whole", VARIED, 4), ("parts", VARIED, 2), ("parts", VARIED, 4)):
        pretrain(shards, tmp_path / name, *validated, *settings, f"run.max_steps={steps}")
    plain, whole, parts = (losses(tmp_path / name) for name in ("plain", "whole", "parts"))
    assert parts == whole
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert all(abs(whole[step] - plain[step]) > 1e-5 for step in plain)
    first, second = (json.loads((tmp_path / name / "baselines.json").read_text()) for name in ("plain", "whole"))
    assert first == second


def test_ranks_and_micro_batches_see_the_same_images(shards: Path, tmp_path: Path) -> None:
    pretrain(shards, tmp_path / "one", *VARIED, "run.max_steps=3")
    launch(shards, tmp_path / "two", *VARIED, "engine.micro_batch=4", "run.max_steps=3")
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert all(abs(one[step] - two[step]) < 1e-5 for step in one)


def test_a_run_keeps_its_augmentation(shards: Path, tmp_path: Path) -> None:
    pretrain(shards, tmp_path / "run", "run.max_steps=1")
    with pytest.raises(CheckpointError, match=r"augment\.hue"):
        pretrain(shards, tmp_path / "run", "augment.hue=0.1", "run.max_steps=2")
