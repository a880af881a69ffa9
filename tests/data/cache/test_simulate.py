"""The predictions of `maskfeat-shards plan` against slow and obvious computations."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.cache.schedule import Schedule
from pipeline.data.cache.simulate import Fleet, forecast
from pipeline.data.mixture import mixture_of
from pipeline.data.plan import Plan
from shards.manifest import Dataset, Shard

CHECKOUT = Path(__file__).resolve().parents[3]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from pipeline.cli import main; sys.argv[0] = 'maskfeat-shards'; main()"
    command = [sys.executable, "-c", code, "plan", *map(str, arguments)]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120)


def reads_step_by_step(schedule: Schedule, shard_bytes: list[int], cache: int, epochs: int) -> list[int]:
    """Simulate a cache that computes its shards at every step, and evicts the one whose next use is last."""
    uses = [schedule.uses(epoch) for epoch in range(epochs + 1)]
    needed: dict[int, dict[int, int]] = {}  # step -> shard -> epoch
    for epoch, use in enumerate(uses):
        for shard, first, last in zip(use.shard, use.first_step, use.last_step, strict=True):
            for step in range(int(first), int(last) + 1):
                needed.setdefault(step, {}).setdefault(int(shard), epoch)
    held: set[int] = set()
    reads = [0] * (epochs + 1)
    for step in range((epochs * schedule.plan.samples - 1) // schedule.batch_size + 1):
        for shard in needed.get(step, {}).keys() - held:
            reads[needed[step][shard]] += shard_bytes[shard]
            held.add(shard)
        idle = held - needed.get(step, {}).keys()
        while sum(shard_bytes[shard] for shard in held) > cache:
            next_use = {
                shard: min((later for later in needed if later > step and shard in needed[later]), default=10**9)
                for shard in idle
            }
            gone = max(idle, key=lambda shard: next_use[shard])
            idle.remove(gone)
            held.remove(gone)
    return reads[:epochs]


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 20), min_size=4, max_size=16),
    lanes=st.sampled_from([2, 4, 6, 8]),
    block=st.integers(1, 12),
    seed=st.integers(0, 2**62),
    spare=st.integers(0, 10),
)
def test_a_cache_reads_what_one_that_looks_at_every_step_reads(
    counts: list[int], lanes: int, block: int, seed: int, spare: int
) -> None:
    """For shards of one size, where every choice of the shard needed last reads equally much."""
    plan, sizes = Plan(counts, seed, lanes, block), np.full(len(counts), 7)
    smallest = forecast(plan, sizes, Fleet(2, 1, 2 * lanes, 0), epochs=3).smallest_cache
    cache = smallest + 7 * spare
    found = forecast(plan, sizes, Fleet(2, 1, 2 * lanes, cache), epochs=3)
    nodes = [reads_step_by_step(Schedule(plan, 2 * lanes, node, 1, 2), sizes.tolist(), cache, 3) for node in range(2)]
    assert found.egress == np.sum(nodes, axis=0).tolist()
    assert found.most_node_reads == np.max(nodes, axis=0).tolist()
    used = [
        [sizes[Schedule(plan, 2 * lanes, node, 1, 2).uses(epoch).shard].sum() for node in range(2)]
        for epoch in range(3)
    ]
    np.testing.assert_allclose(found.hit_rate, 1 - np.sum(nodes, axis=0) / np.sum(used, axis=1), atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    sets=st.lists(st.lists(st.integers(1, 20), min_size=3, max_size=9), min_size=2, max_size=3),
    weights=st.tuples(*[st.integers(1, 9)] * 3),
    spare=st.integers(0, 10),
)
def test_so_does_one_of_a_mixture(sets: list[list[int]], weights: tuple[int, ...], spare: int) -> None:
    order = mixture_of([np.array(counts) for counts in sets], weights[: len(sets)], 7, 4, 8, 8)
    sizes = np.full(len(order.counts), 7)
    cache = forecast(order, sizes, Fleet(2, 1, 8, 0), epochs=3).smallest_cache + 7 * spare
    found = forecast(order, sizes, Fleet(2, 1, 8, cache), epochs=3)
    nodes = [reads_step_by_step(Schedule(order, 8, node, 1, 2), sizes.tolist(), cache, 3) for node in range(2)]
    assert found.egress == np.sum(nodes, axis=0).tolist()


def test_a_cache_of_everything_reads_every_shard_once_and_a_smaller_one_more() -> None:
    plan = Plan([100] * 64, seed=1, lanes=8, block=64)
    sizes = np.random.default_rng(0).integers(10, 1000, 64)
    everything = forecast(plan, sizes, Fleet(1, 4, 64, int(sizes.sum())), epochs=3)
    assert everything.egress == [sizes.sum(), 0, 0]
    assert everything.hit_rate[1:] == [1, 1]
    smaller = forecast(plan, sizes, Fleet(1, 4, 64, everything.smallest_cache), epochs=3)
    assert min(smaller.egress[1:]) > 0


def test_the_first_batch_costs_its_samples_or_their_shards() -> None:
    counts, sizes = [10, 20, 30, 40], np.array([1000, 4000, 9000, 16000])
    plan = Plan(counts, seed=5, lanes=4, block=16)
    found = forecast(plan, sizes, Fleet(2, 1, 8, 10**6), epochs=1)
    shard_of = np.repeat(np.arange(4), counts)
    parts = [shard_of[part] for part in plan.batch(0, 8).reshape(2, 4)]
    assert found.first_batch == pytest.approx(
        max(sum(sizes[shard] / counts[shard] for shard in part) for part in parts)
    )
    assert found.first_batch_shards == max(sum(sizes[shard] for shard in set(part)) for part in parts)


def test_a_real_data_set_needs_only_its_description(tmp_path: Path) -> None:
    shards = [Shard(f"shard-{shard:06}.tar", 100 + shard, 10_000 + shard, "") for shard in range(40)]
    samples = sum(shard.samples for shard in shards)
    (tmp_path / "dataset.json").write_text(Dataset(samples, 1, [], shards, "", 0, 0, None, "").dump())
    done = run(tmp_path, "--nodes", "2", "--batch", "64", "--cache", "1MB", "--lanes", "4", "--block", "50", "--json")
    assert done.returncode == 0, done.stderr
    plan = Plan([shard.samples for shard in shards], lanes=4, block=50)
    expected = forecast(plan, np.array([shard.bytes for shard in shards]), Fleet(2, 8, 64, 10**6), epochs=3)
    found = json.loads(done.stdout)
    assert found["egress"] == expected.egress
    assert (found["samples"], found["shards"], found["bytes"]) == (samples, 40, sum(shard.bytes for shard in shards))


def test_a_mixture_is_planned_by_its_weights(tmp_path: Path) -> None:
    """The JSON is the result of `forecast` for the order of a run; the text has the share of each data set."""
    sets = {"art": [Shard(f"{shard}.tar", 40, 4000, "") for shard in range(10)]}
    sets["photos"] = [Shard(f"{shard}.tar", 100, 10_000, "") for shard in range(40)]
    for name, shards in sets.items():
        (tmp_path / name).mkdir()
        described = Dataset(sum(shard.samples for shard in shards), 1, [], shards, "", 0, 0, None, "")
        (tmp_path / name / "dataset.json").write_text(described.dump())
    roots = [tmp_path / "art", "--weight", "1", tmp_path / "photos", "--weight", "3"]
    fleet = ("--nodes", "2", "--batch", "64", "--cache", "1MB", "--lanes", "4", "--block", "50", "--seed", "5")
    done = run(*roots, *fleet, "--json")
    assert done.returncode == 0, done.stderr
    order = mixture_of([np.full(10, 40), np.full(40, 100)], [1, 3], 5, 4, 50, 64)
    expected = forecast(order, np.repeat([4000, 10_000], [10, 40]), Fleet(2, 8, 64, 10**6), epochs=3)
    found = json.loads(done.stdout)
    assert (found["egress"], found["smallest_cache"]) == (expected.egress, expected.smallest_cache)
    assert (found["samples"], found["shards"], found["bytes"]) == (4400, 50, 440_000)
    lines = run(*roots, *fleet).stdout.splitlines()
    told = [line.removeprefix("mixed").strip() for line in lines if line.startswith("mixed")]
    assert told == [
        f"25.0% from {tmp_path}/art: 400 samples, 2.75 of its epochs per epoch of the run",
        f"75.0% from {tmp_path}/photos: 4,000 samples, 0.825 of its epochs per epoch of the run",
    ]
    small = run(*roots, *fleet, "--cache", "50kB", "--json")
    too_small, *remedies = small.stderr.splitlines()
    assert small.returncode == 1 and too_small.startswith("a cache of 50.0 KB is too small")
    options = [option.split() for option in re.findall(r"--\w+ \d+", " ".join(remedies))]
    assert options and {run(*roots, *fleet, "--cache", "50kB", *option).returncode for option in options} == {0}
    wrong = run(tmp_path / "art", tmp_path / "photos", "--weight", "1", *fleet)
    assert wrong.returncode == 2 and "give --weight as often as DIR, in the same order, or not at all" in wrong.stderr


def test_a_mixture_of_images_and_videos_is_planned_by_steps_of_one(tmp_path: Path) -> None:
    for name, samples in (("photos", 40), ("clips", 10)):
        shards = [Shard(f"{shard}.tar", samples, 100 * samples, "") for shard in range(20)]
        (tmp_path / name).mkdir()
        described = Dataset(20 * samples, 1, [], shards, "", 0, 0, None, "")
        (tmp_path / name / "dataset.json").write_text(described.dump())
    fleet = (
        "--nodes",
        "2",
        "--batch",
        "64",
        "--cache",
        "1MB",
        "--lanes",
        "4",
        "--block",
        "50",
        "--seed",
        "5",
        "--json",
    )
    done = run(tmp_path / "photos", "--medium", "image", tmp_path / "clips", "--medium", "video", *fleet)
    assert done.returncode == 0, done.stderr
    counts, sizes = [np.full(20, 40), np.full(20, 10)], np.repeat([4000, 1000], 20)
    found, either = json.loads(done.stdout), []
    for media in (["image", "video"], None):
        order = mixture_of(counts, [4, 1], 5, 4, 50, 64, media)
        either.append(forecast(order, sizes, Fleet(2, 8, 64, 10**6), epochs=3))
    assert found["smallest_cache"] == either[0].smallest_cache
    assert found["first_batch_shards"] == either[0].first_batch_shards
    assert either[0].first_batch_shards < either[1].first_batch_shards
    wrong = run(tmp_path / "photos", "--medium", "photo", *fleet)
    assert wrong.returncode == 2 and "'photo' is not image or video" in wrong.stderr
    wrong = run(tmp_path / "clips", "--medium", "video", tmp_path / "photos", "--medium", "image", *fleet)
    assert wrong.returncode == 2 and "give all data sets of images before those of videos" in wrong.stderr
    wrong = run(tmp_path / "clips", tmp_path / "photos", "--medium", "image", *fleet)
    assert wrong.returncode == 2 and "give --medium as often as DIR, in the same order, or not at all" in wrong.stderr


@pytest.mark.parametrize(("samples", "in_shard"), [(2**59, 2**59), (3, 4)])
def test_counts_that_cannot_be_true_are_refused(samples: int, in_shard: int, tmp_path: Path) -> None:
    shards = [Shard("a.tar", in_shard, 2**59, "")]
    (tmp_path / "dataset.json").write_text(Dataset(samples, 1, [], shards, "", 0, 0, None, "").dump())
    done = run(tmp_path, "--nodes", "2", "--batch", "64", "--cache", "1MB")
    assert done.returncode == 2
    wrong = f"its dataset.json has a wrong number of samples, {samples:,}; build it again"
    assert done.stderr == f"error: {tmp_path}: {wrong}\n"


def test_an_imagined_data_set_is_planned_and_printed() -> None:
    imagined = ("--samples", "1e6", "--bytes", "100GB", "--shards", "1e3", "--nodes", "4", "--batch", "1024")
    done = run(*imagined, "--cache", "1TB", "--bandwidth", "8Gbit", "--images-per-second", "1000")
    assert done.returncode == 0, done.stderr
    lines = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert lines["data set"].strip() == "1,000,000 samples in 1,000 shards, 100.0 GB"
    assert "26 ms by ranges (25.6 MB a node)" in lines["first batch"]  # 256 images of 100 kB at 1 GB/s
    assert "takes 1,000 s per epoch" in lines["training"]


def test_clips_are_several_to_a_sample() -> None:
    """For 1,024 clips a step, 4 of each video, 256 videos are read; an epoch of a million has 4 million clips."""
    imagined = ("--samples", "1e6", "--bytes", "100GB", "--shards", "1e3", "--nodes", "4", "--cache", "1TB")
    of_clips = run(*imagined, "--batch", "1024", "--repeats", "4", "--clips-per-second", "1000")
    assert of_clips.returncode == 0, of_clips.stderr
    lines = dict(line.split("  ", 1) for line in of_clips.stdout.splitlines())
    assert "3,906.2 batches per epoch" in lines["run"]
    assert "(6.4 MB a node)" in lines["first batch"]  # 64 videos of 100 kB
    assert "takes 4,000 s per epoch" in lines["training"]

    found, expected = (
        json.loads(run(*imagined, *batch, "--json").stdout)
        for batch in (("--batch", "1024", "--repeats", "4"), ("--batch", "256"))
    )
    assert found == expected | {"repeats": 4}


def test_a_cache_that_is_too_small_is_told_what_would_do() -> None:
    imagined = ("--samples", "1e6", "--bytes", "100GB", "--shards", "1e4", "--nodes", "4", "--batch", "1024")
    done = run(*imagined, "--cache", "4GB", "--json")
    assert done.returncode == 1
    needs = json.loads(done.stdout)["smallest_cache"]
    assert needs > 4e9
    too_small, *remedies = done.stderr.splitlines()
    assert too_small.startswith("a cache of 4.0 GB is too small")
    options = [option.split() for option in re.findall(r"--\w+ \d+", " ".join(remedies))]
    assert [name for name, _ in options] == ["--block", "--lanes"]
    for option in options:
        assert run(*imagined, "--cache", "4GB", *option).returncode == 0


def test_nodes_that_share_lanes_are_told_so() -> None:
    imagined = ("--samples", "1e5", "--bytes", "10GB", "--shards", "100", "--batch", "1024", "--cache", "1TB", "--json")
    apart, shared = run(*imagined, "--nodes", "8", "--lanes", "8"), run(*imagined, "--nodes", "8", "--lanes", "4")
    assert "share lanes" in shared.stderr and not apart.stderr
    assert json.loads(apart.stdout)["egress"][0] < 1.2e10 < 1.9e10 < json.loads(shared.stdout)["egress"][0]


IMAGINED = ("--nodes", "1", "--batch", "8", "--cache", "1GB", "--bytes", "4EB")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--nodes", "2", "--batch", "64", "--cache", "1GB"), "give either DIR or all of"),
        (("nowhere", "--nodes", "2", "--batch", "64", "--cache", "1GB"), "nowhere: no such folder"),
        (("nowhere", "--nodes", "2", "--batch", "60", "--cache", "1GB"), "cannot be divided evenly"),
        (
            ("nowhere", "--nodes", "2", "--batch", "64", "--repeats", "8", "--cache", "1GB"),
            "2 nodes of 8 ranks, 8 of each sample; change it, --nodes or --ranks-per-node or --repeats",
        ),
        (("nowhere", "--nodes", "2", "--batch", "64", "--cache", "big"), "'big' is not a size"),
        (
            ("--samples", "5", "--bytes", "1", "--shards", "9", "--nodes", "1", "--batch", "8", "--cache", "1"),
            "cannot fill",
        ),
        (("--samples", "0.5", "--nodes", "1", "--batch", "8", "--cache", "1"), "not a whole number"),
        ((*IMAGINED, "--samples", "4e18", "--shards", "10"), "'4e18' is not a whole number from 1 to 1e15"),
        ((*IMAGINED, "--samples", "1e15", "--shards", "1e9"), "1,000,000,000 shards are more than 100,000,000"),
        ((*IMAGINED, "--samples", "1e6", "--shards", "10", "--seed", str(2**62)), "--seed"),
        ((*IMAGINED, "--samples", "1e6", "--shards", "10", "--images-per-second", "inf"), "--images-per-second"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_planning_needs_no_torch() -> None:
    code = "import sys, pipeline.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT).returncode == 0
