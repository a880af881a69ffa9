"""Training on remote shards: the same samples, pixels and losses as from a disk, through faults, cached or not."""

import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import launch, launch_and_kill, losses, metrics, small_recipe, trace
from servers import S3, http_server

from pipeline.data.batch import Batch
from pipeline.data.errors import DataError
from pipeline.data.exact import ExactData
from pipeline.data.training_data import Part
from shards.manifest import Manifest
from shards.storage import upload


def data(shards: str | Path, *overrides: str, rank: int = 0, world_size: int = 1) -> ExactData:
    recipe = small_recipe(Path("unused"), Path("unused"), f"data.shards={shards}", *overrides)
    part = Part(16, 16 // world_size, 0, torch.device("cpu"), rank, world_size, rank, world_size)
    return ExactData(recipe.data, part)


def assert_same(these: list[Batch], those: list[Batch]) -> None:
    for one, other in zip(these, those, strict=True):
        assert one.request.ids.tolist() == other.request.ids.tolist()
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.keys, other.keys) and torch.equal(one.weights, other.weights)


@pytest.mark.parametrize("cached", [False, True])
def test_http_with_faults_gives_what_the_disk_gives(shards: Path, tmp_path: Path, cached: bool) -> None:
    expected = list(data(shards).batches(0, 15))
    with http_server(shards) as server:
        options = [f"data.cache={tmp_path}/cache"] if cached else []
        remote = data(server.url, *options)
        server.fail(503, times=8)
        server.fail(429, times=3)
        server.reset(times=6)
        assert_same(list(remote.batches(0, 15)), expected)
        counters = remote.counters()
        assert counters["retries"] + counters.get("cache_errors", 0) >= 10 and counters["failures"] == 0
        assert counters["bytes"] > 0


def test_a_clock_that_jumps_changes_nothing(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(data(shards).batches(0, 15))
    with http_server(shards) as server:
        remote = data(server.url, f"data.cache={tmp_path}/cache", "data.deadline=30")
        jumps = random.Random(0)
        monkeypatch.setattr(time, "time", lambda: jumps.uniform(0, 4e9))
        server.fail(503, times=8)
        server.reset(times=6)
        assert_same(list(remote.batches(0, 15)), expected)


def test_real_s3_gives_what_the_disk_gives(shards: Path, tmp_path: Path, s3: S3) -> None:
    for file in shards.iterdir():
        upload(file, f"{s3.bucket}/training/{file.name}")
    expected = list(data(shards).batches(0, 12))
    assert_same(list(data(f"{s3.bucket}/training").batches(0, 12)), expected)
    cached = data(f"{s3.bucket}/training", f"data.cache={tmp_path}/cache")
    assert_same(list(cached.batches(0, 12)), expected)


def test_the_first_batch_waits_for_no_shard(shards: Path, tmp_path: Path) -> None:
    """Every request for the beginning of a shard, which only the cache makes, hangs; the samples come all the same."""
    with http_server(shards) as server:
        remote = data(server.url, f"data.cache={tmp_path}/cache")
        server.stall(3600, times=1000, match=".tar bytes=0-")
        (batch,) = remote.batches(0, 1)
        (expected,) = data(shards).batches(0, 1)
        assert_same([batch], [expected])
        assert remote.counters()["samples_from_cache"] == 0


def test_a_flipped_bit_in_the_cache_is_fetched_anew(shards: Path, tmp_path: Path) -> None:
    with http_server(shards) as server:
        remote = data(server.url, f"data.cache={tmp_path}/cache")
        expected = list(data(shards).batches(0, 6))
        assert_same(list(remote.batches(0, 6)), expected)
        manifest = Manifest.load(shards)
        good = {}
        for file in (tmp_path / "cache").rglob("*.tar"):
            good[file.name] = file.read_bytes()
            torn = bytearray(file.read_bytes())
            shard = int(file.name.partition("-")[0])
            for start in manifest.offset[manifest.shard == shard].tolist():
                torn[start + 5] ^= 4
            file.write_bytes(torn)
        assert_same(list(remote.batches(0, 6)), expected)
        deadline = time.monotonic() + 120
        while sum(file.read_bytes() == good[file.name] for file in (tmp_path / "cache").rglob("*.tar")) < len(good):
            assert time.monotonic() < deadline, "the cache keeps torn shards"
            time.sleep(0.1)


def test_a_shard_replaced_at_its_source_is_left_out_sample_by_sample(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    manifest = Manifest.load(copy)
    shutil.copy(copy / manifest.shard_names[1], copy / manifest.shard_names[0])
    with http_server(copy) as server:
        for batch in data(server.url).batches(0, 5):
            hurt = manifest.shard[batch.request.ids] == 0
            np.testing.assert_array_equal(batch.weights.numpy() == 0, hurt)
            assert all("checksum" in sample.reason or "ends inside" in sample.reason for sample in batch.bad)


def test_an_outage_is_one_error_within_the_deadline(shards: Path) -> None:
    with http_server(shards) as server:
        remote = data(server.url, "data.deadline=2")
        server.fail(503, times=10**6)
        with pytest.raises(DataError, match=r"503.*unreachable.*last checkpoint"):
            list(remote.batches(0, 2))


def test_a_cache_too_small_is_refused_with_the_number_needed(shards: Path, tmp_path: Path) -> None:
    with http_server(shards) as server:
        with pytest.raises(DataError) as error:
            data(server.url, f"data.cache={tmp_path}/cache", "data.cache_size=10kB")
        needed = int(str(error.value).partition("data.cache_size=")[2].split()[0])
        assert 10_000 < needed <= Manifest.load(shards).shard_bytes.sum()
        enough = data(server.url, f"data.cache={tmp_path}/cache", f"data.cache_size={needed}")
        assert_same(list(enough.batches(0, 8)), list(data(shards).batches(0, 8)))


def test_a_killed_run_over_http_goes_on_like_an_undisturbed_one_from_disk(shards: Path, tmp_path: Path) -> None:
    """Two ranks that share a cache, faults on the way, SIGKILL of all; then one rank."""
    options = ["run.max_steps=18", "run.save_every=6", "run.trace_samples=true"]
    launch(shards, tmp_path / "disk", *options)
    with http_server(shards) as server:
        server.fail(503, times=5, match=".tar")
        server.reset(times=5, match=".tar")
        options.append(f"data.cache={tmp_path}/cache")
        checkpoint = tmp_path / "run/checkpoints/step-00000012"
        launch_and_kill(server.url, tmp_path / "run", *options, when=checkpoint)
        launch(server.url, tmp_path / "run", *options)
        whole = [path for path, asked in server.requests if asked.startswith("bytes=0-") and path.endswith(".tar")]
    assert losses(tmp_path / "run") == losses(tmp_path / "disk")
    for rank in (0, 1):
        assert trace(tmp_path / "run", rank) == trace(tmp_path / "disk", rank)
    lines = metrics(tmp_path / "run")
    assert lines[10]["data/requests"] > 0 and lines[10]["data/retries"] > 0
    assert lines[17]["data/samples_from_cache"] > 0 and lines[17]["data/cache_owners"] == 1
    assert len(whole) <= 2 * 6 + 10  # six shards, once a life, and the faults
