"""A teacher's features, tokens and labels of clips: those of their frames as images; and runs on them."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from class_targets import hog_words
from launching import losses, metrics, pretrain
from PIL import Image
from scripting import run_script
from teachers import write_classifier, write_dvae, write_teacher

import pipeline.commands.words as words_script
from model.layout import Layout, make_mask, mask_of_all
from pipeline.targets.frames import described_frames, mask_of_frames
from pipeline.targets.registry import build_target
from pipeline.targets.settings import TargetSettings
from pipeline.targets.target import Computing, Predictions

CLIPS = ("data.image_size=64", "data.frames=4", "data.sampling=stride", "data.stride=2", "engine.micro_batch=8")
CPU = torch.device("cpu")
KINDS = ["features", "tokens", "dvae", "labels"]


def settings_of(kind: str, folder: Path) -> dict[str, str]:
    """Write what a target needs to `folder`, tiny and random; return its settings."""
    if kind == "features":
        write_teacher(folder)
        return {"kind": "features", "teacher": str(folder)}
    if kind == "tokens":
        return {"kind": "tokens", "tokenizer": str(hog_words(folder))}
    if kind == "dvae":
        folder.mkdir()
        return {"kind": "tokens", "tokenizer": str(write_dvae(folder / "dvae.pth"))}
    write_classifier(folder, "resnet10t")
    return {"kind": "labels", "teacher": str(folder)}


def overrides(kind: str, folder: Path) -> list[str]:
    return [f"target.{name}={value}" for name, value in settings_of(kind, folder).items()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_is_described_as_its_frames_are_as_images(kind: str, tmp_path: Path) -> None:
    """Under masks that differ in time: the prediction at time t is about frame 2t alone."""
    clips = torch.randint(0, 256, (2, 3, 6, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    settings = TargetSettings.model_validate(settings_of(kind, tmp_path / "target"))
    predictions, of_images = Predictions(Layout(3, 4, 4), (2, 16, 16)), Predictions(Layout(1, 4, 4), (1, 16, 16))
    computing = Computing(torch.float32, CPU)
    target, images = (build_target(settings, one, computing) for one in (predictions, of_images))
    cells = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    cells[0, 0, :2], cells[0, 2, 3, :1], cells[0, 1, 0, :3] = True, True, True  # 12 of each clip
    cells[1, 1, :3] = True
    mask = make_mask(cells, predictions.layout)
    described = target.describe(described_frames(clips, predictions), mask_of_frames(mask, predictions))

    expected = []
    for clip in range(2):
        for time in range(3):
            frame = clips[clip : clip + 1, :, 2 * time]
            every = images.describe(frame, mask_of_all(1, of_images.layout, CPU))
            expected.append(every[cells[clip, time].flatten()])
    torch.testing.assert_close(described, torch.cat(expected), atol=1e-5, rtol=0)
    assert len(described) == 24 and len(described.flatten(1).unique(dim=0)) > 1
    assert target.identity == images.identity  # a target of clips is that of images


@pytest.mark.parametrize("kind", ["features", "tokens", "labels"])
def test_a_run_on_clips_learns_resumes_and_exports(
    kind: str, video_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*CLIPS, *overrides(kind, tmp_path / "target"), "optim.warmup_epochs=0", "optim.lr=0.01"]
    validation = [f"data.validation={video_shards}", "data.validation_samples=16"]
    pretrain(video_shards, tmp_path / "whole", *settings, *validation, "run.max_steps=10")
    pretrain(video_shards, tmp_path / "parts", *settings, "run.max_steps=5")
    pretrain(video_shards, tmp_path / "parts", *settings, "run.max_steps=10")
    whole = losses(tmp_path / "whole")
    assert losses(tmp_path / "parts") == whole
    assert np.mean(list(whole.values())[-3:]) < np.mean(list(whole.values())[:3])

    baselines = json.loads((tmp_path / "whole" / "baselines.json").read_text())
    zero = {"features": 1, "tokens": math.log(6), "labels": math.log(11)}[kind]
    assert baselines["zero"] == pytest.approx(zero, rel=1e-5) and baselines["mean"] < baselines["zero"]
    last = metrics(tmp_path / "whole")[-1]
    assert last["frames_per_second"] == pytest.approx(4 * last["images_per_second"])
    assert ("copy" in baselines) == (kind == "features") and ("val_top1" in last) == (kind != "features")
    picture = tmp_path / "whole" / "pictures" / "step-00000010"
    assert np.asarray(Image.open(picture.with_suffix(".png"))).std() > 0
    with Image.open(picture.with_suffix(".gif")) as animation:
        assert animation.n_frames == 2
    assert run_script(monkeypatch, "export.py", tmp_path / "whole", tmp_path / "weights") == 0
    assert "10 of 16 clips: 160 in all" in (tmp_path / "weights" / "README.md").read_text()


@pytest.mark.parametrize("of", ["hog", "features"])
def test_words_found_in_clips_are_trained_on(
    of: str, video_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words of frames of clips are words of images, too: the same file names the patches of both."""
    if of == "features":
        write_teacher(tmp_path / "teacher")
    source = ["--of", of if of == "hog" else str(tmp_path / "teacher")]
    options = [*CLIPS, "optim.batch_size=16", "data.lanes=4", "engine.precision=fp32"]
    arguments = [str(video_shards), str(tmp_path / "words"), "--words", "8", *source, *options]
    monkeypatch.setattr(sys, "argv", ["words.py", *arguments])
    assert words_script.main() == 0
    assert json.loads((tmp_path / "words" / "words.json").read_text())["used"] == 8
    words = [f"target.tokenizer={tmp_path / 'words'}", "target.kind=tokens"]
    pretrain(video_shards, tmp_path / "run", *CLIPS, *words, "run.max_steps=3")
    assert all(0 < loss < 3 for loss in losses(tmp_path / "run").values())
