"""Runs on videos that are stored as JPEGs: killed and resumed bit for bit, from a faulty server with a cache."""

from pathlib import Path

from launching import assert_same_weights, launch, launch_and_kill, losses, metrics, trace
from servers import S3, http_server
from test_clip_runs import CLIPS
from test_remote import assert_same, data

from shards.storage import upload


def test_a_killed_run_resumes_like_an_undisturbed_one(jpeg_shards: Path, tmp_path: Path) -> None:
    options = [*CLIPS, "run.max_steps=6", "run.trace_samples=true"]
    launch(jpeg_shards, tmp_path / "undisturbed", *options)
    options.append("run.save_every=3")
    with http_server(jpeg_shards) as server:
        server.fail(503, times=3, match=".tar")
        server.reset(times=3, match=".tar")
        options.append(f"data.cache={tmp_path}/cache")
        launch_and_kill(server.url, tmp_path / "run", *options, when=tmp_path / "run/checkpoints/step-00000003")
        launch(server.url, tmp_path / "run", *options)
    assert losses(tmp_path / "run") == losses(tmp_path / "undisturbed")
    assert_same_weights(tmp_path / "run", tmp_path / "undisturbed")
    assert trace(tmp_path / "run", 1) == trace(tmp_path / "undisturbed", 1)
    assert metrics(tmp_path / "run")[5]["data/samples_from_cache"] > 0


def test_real_s3_gives_the_clips_that_the_disk_gives(jpeg_shards: Path, tmp_path: Path, s3: S3) -> None:
    for file in jpeg_shards.iterdir():
        upload(file, f"{s3.bucket}/jpegs/{file.name}")
    expected = list(data(jpeg_shards, *CLIPS).batches(0, 4))
    assert_same(list(data(f"{s3.bucket}/jpegs", *CLIPS).batches(0, 4)), expected)
    cached = data(f"{s3.bucket}/jpegs", *CLIPS, f"data.cache={tmp_path}/cache")
    assert_same(list(cached.batches(0, 4)), expected)
