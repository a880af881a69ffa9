"""Builds on a Ray cluster of two nodes, which are processes of this machine."""

import faulthandler
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from making_images import contents, make_tree, pixels
from making_videos import encoded, film
from PIL import Image

import shards
from shards.build import build
from shards.files import ShardError
from shards.making.engines import run_on_ray

ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    here = Path(__file__)
    patch.setenv("PYTHONPATH", os.pathsep.join(map(str, [Path(shards.__file__).parents[1], *here.parents[:3]])))
    head = {"include_dashboard": False, **NODE}
    faulthandler.dump_traceback_later(900, exit=True)  # Ray waits without end for a cluster that does not answer
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(**NODE)
    ray.init(cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    faulthandler.cancel_dump_traceback_later()
    patch.undo()


def node_when_both_are_busy(meeting: Path, number: int) -> str:
    """The node that this job runs on, once the other job has begun, which one core alone could not do at once."""
    (meeting / str(number)).touch()
    deadline = time.monotonic() + 60
    while len(list(meeting.iterdir())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return str(ray.get_runtime_context().get_node_id())


def fail_as_a_full_disk(number: int) -> None:
    raise OSError(28, "No space left on device", f"/file-{number}")


def test_jobs_run_on_every_node_and_errors_come_back_as_they_are(cluster: Cluster, tmp_path: Path) -> None:
    nodes = set(run_on_ray(partial(node_when_both_are_busy, tmp_path), [0, 1]))
    assert nodes == {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    assert len(nodes) == 2
    with pytest.raises(OSError, match="No space left") as caught:
        list(run_on_ray(fail_as_a_full_disk, range(5)))
    assert caught.value.errno == 28
    assert caught.value.filename in {f"/file-{number}" for number in range(5)}  # of the job that ended first


def test_videos_built_on_ray_have_the_bytes_of_a_local_build(cluster: Cluster, tmp_path: Path) -> None:
    """This includes videos that are encoded again."""
    for number in range(6):
        (tmp_path / "source" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        video = encoded(film(6 + number, seed=number), g=3) if number else b"damaged"
        (tmp_path / "source" / "ab"[number % 2] / f"{number}.mp4").write_bytes(video)
    build(tmp_path / "source", tmp_path / "local", samples_per_shard=3, resize=32, workers=1)
    engine = partial(run_on_ray, address=cluster.address)
    dataset, _ = build(tmp_path / "source", tmp_path / "ray", samples_per_shard=3, resize=32, engine=engine)
    assert (dataset.samples, dataset.rejects) == (5, 1)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_a_build_on_ray_has_the_bytes_of_a_local_one(cluster: Cluster, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", 23)
    (source / "ant" / "bad.jpg").write_bytes(b"")
    build(source, tmp_path / "local", samples_per_shard=4, workers=1)
    seen: list[tuple[int, int]] = []
    engine = partial(run_on_ray, address=cluster.address)
    build(source, tmp_path / "ray", samples_per_shard=4, engine=engine, progress=lambda *done: seen.append(done))
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert seen[-1] == (24, 24)
    assert len(seen) == 6


def test_a_lost_node_costs_nothing_but_time(cluster: Cluster, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(24):
        Image.fromarray(pixels(number, 400, 400)).save(source / f"{number}.bmp")
    build(source, tmp_path / "local", samples_per_shard=2, workers=1)
    node = cluster.add_node(**NODE)
    lost = False

    def lose_the_node(done: int, total: int) -> None:
        nonlocal lost
        if not lost:
            cluster.remove_node(node, allow_graceful=False)
            lost = True

    build(source, tmp_path / "ray", samples_per_shard=2, engine=run_on_ray, progress=lose_the_node)
    assert lost
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_kill_9_of_the_driver_then_a_re_run_gives_the_same_bytes(cluster: Cluster, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "ray"
    source.mkdir()
    for number in range(24):
        Image.fromarray(pixels(number, 400, 400)).save(source / f"{number}.bmp")
    build(source, tmp_path / "local", samples_per_shard=2, workers=1)
    command = [sys.executable, "-m", "shards.cli", "build", str(source), str(out), "--samples-per-shard", "2"]
    command += ["--engine", "ray", "--ray-address", cluster.address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 60
    while len(list((out / ".build").glob("shard-*.json"))) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert not (out / "dataset.json").exists()
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    assert contents(out) == contents(tmp_path / "local")


def test_no_cluster_is_one_clear_error(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", 2)
    command = [sys.executable, "-m", "shards.cli", "build", str(source), str(tmp_path / "out"), "--engine", "ray"]
    environment = os.environ | {"PYTHONPATH": str(Path(shards.__file__).parents[1])}
    for options, message in (
        (["--ray-address", "127.0.0.1:1"], "error: 127.0.0.1:1: no Ray cluster can be used there"),
        (["--ray-address", "nonsense"], "error: nonsense: no Ray cluster can be used there"),
    ):
        ended = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, env=environment)
        assert ended.returncode == 2
        assert ended.stderr.splitlines()[-1].startswith(message), ended.stderr


def test_without_ray_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ShardError, match=r"pip install 'maskfeat-pipeline\[ray\]'"):
        build(make_tree(tmp_path / "source", 2), tmp_path / "out", engine=run_on_ray)
