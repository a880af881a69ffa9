"""Runs on videos: a run that was killed resumes bit for bit, over a faulty server with a cache, on other ranks."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import assert_same_weights, launch, launch_and_kill, losses, metrics, trace
from servers import S3, http_server
from test_remote import assert_same, data

from pipeline.data import exact
from shards.storage import upload

CLIPS = ("data.image_size=64", "data.frames=4", "data.sampling=stride", "data.stride=2", "data.repeats=2")


@pytest.fixture(scope="module")
def undisturbed(video_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Train on two ranks from a disk."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    launch(video_shards, run, *CLIPS, "run.max_steps=8", "run.trace_samples=true")
    yield run


def test_a_killed_run_of_clips_resumes_like_an_undisturbed_one(
    video_shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """The server fails sometimes, and there is a cache; a step has 8 videos with two clips each."""
    options = [*CLIPS, "run.max_steps=8", "run.trace_samples=true", "run.save_every=3"]
    with http_server(video_shards) as server:
        server.fail(503, times=3, match=".tar")
        server.reset(times=3, match=".tar")
        options.append(f"data.cache={tmp_path}/cache")
        launch_and_kill(server.url, tmp_path / "run", *options, when=tmp_path / "run/checkpoints/step-00000003")
        launch(server.url, tmp_path / "run", *options)
    assert losses(tmp_path / "run") == losses(undisturbed)
    assert_same_weights(tmp_path / "run", undisturbed)
    for rank in (0, 1):
        ids = trace(undisturbed, rank)
        assert trace(tmp_path / "run", rank) == ids and {len(of_step) for of_step in ids.values()} == {4}
    assert metrics(tmp_path / "run")[7]["data/samples_from_cache"] > 0


def test_another_number_of_ranks_sees_the_same_clips(video_shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    launch(video_shards, tmp_path / "run", *CLIPS, "run.max_steps=8", ranks=1)
    for step, loss in losses(undisturbed).items():
        assert losses(tmp_path / "run")[step] == pytest.approx(loss, rel=1e-5)


def test_an_epoch_of_repeats_is_every_sample_once(undisturbed: Path) -> None:
    """16 clips a step are 8 videos, of 22: the schedule of 20 epochs has 55 steps."""
    said = "".join(path.read_text() for path in undisturbed.parent.rglob("run-said*") if path.is_file())
    said += "".join(path.read_text() for path in undisturbed.parent.glob("run-said*/*"))
    assert "steps 0 to 8 of a schedule of 55" in said


def test_real_s3_gives_the_clips_that_the_disk_gives(video_shards: Path, tmp_path: Path, s3: S3) -> None:
    for file in video_shards.iterdir():
        upload(file, f"{s3.bucket}/clips/{file.name}")
    expected = list(data(video_shards, *CLIPS).batches(0, 4))
    assert_same(list(data(f"{s3.bucket}/clips", *CLIPS).batches(0, 4)), expected)
    cached = data(f"{s3.bucket}/clips", *CLIPS, f"data.cache={tmp_path}/cache")
    assert_same(list(cached.batches(0, 4)), expected)


def test_the_cache_counts_the_samples_of_a_step(
    video_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For 16 clips a step, two of each video, 8 videos are read."""
    schedules, make = [], exact.Schedule
    monkeypatch.setattr(exact, "Schedule", lambda *arguments: schedules.append(make(*arguments)) or schedules[-1])
    with http_server(video_shards) as server:
        data(server.url, *CLIPS, f"data.cache={tmp_path}/cache").close()
    assert [schedule.batch_size for schedule in schedules] == [8]
