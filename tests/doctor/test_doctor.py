"""scripts/doctor.py for a run of fine-tuning, and on clips; on nodes that differ, see test_preflight.py."""

import json
import re
import shutil
from math import isclose
from pathlib import Path

import pytest
import torch
from labelled import labelled_shards
from launching import FINETUNE, SMALL, finetune_recipe, free_port, small_recipe
from ranks import Ranks

from pipeline.doctor import measure
from pipeline.doctor.examine import inputs_of
from pipeline.finetune.build import build_classifier
from shards.manifest import Manifest


def doctor(said: Path, recipe: str, *arguments: object) -> tuple[int | None, str]:
    """Run it alone; return its exit status and output."""
    settings = [recipe, "--samples=64", *SMALL, *FINETUNE, *map(str, arguments)]
    alone = Ranks(1, settings, said, free_port(), "scripts/doctor.py")
    return alone.wait(120)[0], alone.said()


def test_examines_a_finetuning_run(tmp_path: Path) -> None:
    sets = labelled_shards(
        tmp_path, {"train": {"red": 40, "blue": 40}, "validation": {"red": 3}, "other": {"green": 3}}
    )
    run, told = tmp_path / "run", tmp_path / "findings.json"
    data = [f"data.shards={sets['train']}", f"run.dir={run}"]
    more = ["--finetune", *data, f"data.validation={sets['validation']}", "optim.average=0.9", "--json", told]
    status, said = doctor(tmp_path / "first", "small", *more)
    assert status == 0, said
    findings = {finding["check"]: finding for finding in json.loads(told.read_text())}
    model = build_classifier(finetune_recipe("none", "none", run), 2)
    size = 4 * 4 * sum(parameter.numel() for parameter in model.parameters())  # fp32: master, moments, average
    (room,) = findings["room for checkpoints"]["results"].values()
    free, _, _, _, _, checkpoints = room.split()[:6]
    assert isclose(float(free.replace(",", "")) * 1e9 / int(checkpoints.replace(",", "")), size, rel_tol=0.01), room
    assert findings["decoding"]["verdict"] != "problem"
    if torch.cuda.is_available():
        assert "images" in next(iter(findings["decoding on GPUs"]["results"].values()))
    else:
        assert findings["decoding on GPUs"]["results"].popitem()[1] == "no GPU"

    # The record of a run says of which kind it is
    record = "tests/old_runs/finetune/config.yaml"
    status, said = doctor(tmp_path / "second", record, *data, f"data.validation={sets['other']}")
    assert status == 2 and "classes, such as 'green', are not classes of" in said, said


def test_examines_a_run_on_clips(video_shards: Path, tmp_path: Path) -> None:
    """Two clips of each video: it reads half as many videos a second as training needs clips."""
    told = tmp_path / "findings.json"
    options = ["data.image_size=64", "data.frames=4", "data.repeats=2", f"data.shards={video_shards}"]
    more = ["demo", *SMALL, *options, f"run.dir={tmp_path / 'run'}", "--samples=128", "--json", str(told)]
    alone = Ranks(1, [*more, "--images-per-second=1e7"], tmp_path / "said", free_port(), "scripts/doctor.py")
    assert alone.wait(240) == [0], alone.said()
    findings = {finding["check"]: finding for finding in json.loads(told.read_text())}
    (read,), (decoded,) = (findings[check]["results"].values() for check in ("storage", "decoding"))
    assert re.fullmatch(r"[\d,]+ videos/s, [\d,]+ MB/s of 5,000,000 needed", read), read
    rates = re.fullmatch(r"([\d,]+) clips/s, ([\d,]+) frames/s of 10,000,000 needed", decoded)
    assert rates, decoded
    clips, frames = (float(rate.replace(",", "")) for rate in rates.groups())
    assert abs(frames - 4 * clips) <= 2


@pytest.mark.parametrize(
    ("frames", "why"),
    [("null", "has videos: set data.frames to the number"), ("4", "has images, and data.frames=4 asks for clips")],
)
def test_samples_of_another_kind_are_a_problem(
    video_shards: Path, shards: Path, tmp_path: Path, frames: str, why: str
) -> None:
    """This covers the training set and the validation set."""
    told, data = tmp_path / "findings.json", [f"data.shards={video_shards}", f"data.validation={shards}"]
    settings = ["demo", *SMALL, *data, f"data.frames={frames}", "data.image_size=64", f"run.dir={tmp_path / 'run'}"]
    alone = Ranks(1, [*settings, "--json", str(told)], tmp_path / "said", free_port(), "scripts/doctor.py")
    assert alone.wait(240) == [1], alone.said()
    findings = {finding["check"]: finding for finding in json.loads(told.read_text())}
    assert [name for name, finding in findings.items() if finding["verdict"] == "problem"] == ["storage"]
    assert why in findings["storage"]["results"].popitem()[1]


def test_bad_videos_are_counted_among_the_videos_that_were_tried(video_shards: Path, tmp_path: Path) -> None:
    """However many clips are made of each: 2 of 22 are a twelfth of what is drawn, give or take."""
    damaged = tmp_path / "damaged"
    shutil.copytree(video_shards, damaged)
    manifest = Manifest.load(damaged)
    for sample in (3, 11):
        with Path(manifest.shard_location(manifest.shard[sample])).open("r+b") as tar:
            tar.seek(manifest.offset[sample] + 40)
            tar.write(b"damage")
    recipe = small_recipe(damaged, tmp_path, "data.image_size=64", "data.frames=4", "data.repeats=4")
    samples, read = measure.storage(manifest, recipe.data, 0, 3)
    decoded = measure.decoding(samples, manifest, recipe.data, torch.device("cpu"))
    assert read.tried == decoded.tried == 192 and 0 < read.bad == decoded.bad < 60


def test_images_beside_videos_are_read_and_decoded_in_batches_of_one_medium(
    video_shards: Path, shards: Path, tmp_path: Path
) -> None:
    mixture = f"data.mixture={{clips: {{shards: {video_shards}}}, photos: {{shards: {shards}}}}}"
    validation = (f"data.validation={video_shards}", f"data.validation_images={shards}")
    recipe = small_recipe("null", tmp_path, mixture, *validation, "data.image_size=64", "data.frames=4")
    opened, identities = inputs_of(recipe)
    assert list(identities) == ["data.mixture", "data.validation", "data.validation_images"]
    mixed, *_ = opened
    assert isinstance(mixed, Manifest), mixed
    assert [len(found) for found in opened] == [len(mixed), 22, len(mixed) - 22]
    samples, read = measure.storage(mixed, recipe.data, 0, 4)
    assert [request.medium for request, _ in samples] == ["image", "video"] * 2
    decoded = measure.decoding(samples, mixed, recipe.data, torch.device("cpu"))
    assert read.tried == 4 * measure.BATCH and (read.bad, decoded.bad) == (0, 0)
