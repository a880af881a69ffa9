"""The interpretation of synthetic measurements: six ranks on three nodes."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoints.saver import snapshot_bytes
from pipeline.cluster.findings import Finding, Verdict
from pipeline.config import load_recipe
from pipeline.data.decode.gpu import Choice
from pipeline.data.decode.graphs import Decoding
from pipeline.data.settings import Data
from pipeline.doctor import diagnosis, measure
from pipeline.doctor.diagnosis import Vitals
from pipeline.doctor.examine import _counted, _needed
from pipeline.doctor.measure import Counted, Gpu, Machine, Rate
from pipeline.doctor.network import AllReduce, Clock, clock_of

OK, WARNING, PROBLEM = Verdict
GIB = 2**30

MACHINE = Machine(frozenset(range(16)), math.inf, 65536, 10**11, 8 * GIB, 10**12, 2 * 10**12)
HEALTHY = [
    Vitals(f"n{1 + rank // 2}", rank // 2 * 2, Rate(900, 9e7, 512), Rate(800, 0, 512), MACHINE) for rank in range(6)
]
GPU = Gpu("H100", GIB, "", 0, (), 50, 87)
SOUND: list[Gpu | None] = [GPU] * 6
BEST = Choice(Decoding(), "regions of images, as tested on this node", True)
CHOICES: list[Choice | str | None] = [BEST] * 6
IMAGES, CLIPS = Counted(), Counted("videos", "clips", repeats=2, frames=16)
SLOW = replace(HEALTHY[4], decoded=Rate(390, 0, 512))


def changed(rank: int, **to: Any) -> list[Vitals]:
    """Healthy ranks, but for one."""
    machine = replace(MACHINE, **{key: value for key, value in to.items() if hasattr(MACHINE, key)})
    others = {key: value for key, value in to.items() if not hasattr(MACHINE, key)}
    return [*HEALTHY[:rank], replace(HEALTHY[rank], machine=machine, **others), *HEALTHY[rank + 1 :]]


def test_healthy_machines_are_well() -> None:
    findings = [
        diagnosis.storage(HEALTHY, 0.01, 800, IMAGES),
        diagnosis.decoding(HEALTHY, 0.01, 800, IMAGES),
        diagnosis.gpu_decoding(HEALTHY, CHOICES),
        diagnosis.gpu_decoding(HEALTHY, [None] * 6),
        diagnosis.cores(HEALTHY, 8),
        diagnosis.open_files(HEALTHY, 64),
        diagnosis.shared_memory(HEALTHY, SOUND),
        diagnosis.room(HEALTHY, 4 * 10**9, 4),
        diagnosis.cache(HEALTHY, 10**12),
        diagnosis.clocks(HEALTHY, [Clock(0.4, 0.01)] * 6),
        diagnosis.network(HEALTHY, AllReduce(10**9, 6, 0.01, True), 150e9),
        diagnosis.gpus(HEALTHY, SOUND),
        diagnosis.memory(HEALTHY, 5 * 10**10),
    ]
    assert [finding.verdict for finding in findings] == [OK] * len(findings)
    assert findings[0].results == {"ranks 0-5 (3 nodes)": "1,800 images/s, 180 MB/s"}  # of a node
    assert findings[2].results == {"ranks 0-5 (3 nodes)": "regions of images, as tested on this node"}
    assert findings[7].results == {"rank 0 (n1)": "1,000.0 GB free, room for 250 checkpoints of 4.00 GB"}
    # A ring of 6 passes 5/6 of a GB on, twice, in 10 ms
    assert findings[10].results == {"ranks 0-5 (3 nodes)": "1,000.00 MB in 10.0 ms, bus bandwidth 166.67 GB/s"}


@pytest.mark.parametrize(
    ("finding", "verdict", "place", "result", "remedy"),
    [
        (
            diagnosis.storage(changed(2, read="/data: no such folder"), 0.01, None, IMAGES),
            PROBLEM,
            "rank 2 (n2)",
            "/data",
            "verify",
        ),
        (
            diagnosis.storage(changed(2, read=Rate(9, 9, 512, 6, "torn")), 0.01, None, IMAGES),
            PROBLEM,
            "rank 2",
            "6 of 512",
            "",
        ),
        (
            diagnosis.storage(changed(2, read=Rate(9, 9, 512, 5, "torn")), 0.01, None, IMAGES),
            WARNING,
            "rank 2",
            "torn",
            "cache",
        ),
        (
            diagnosis.storage(HEALTHY, 0.01, 901, IMAGES),
            WARNING,
            "ranks 0-5",
            "1,800 images/s, 180 MB/s of 1,802 needed",
            "",
        ),
        (
            diagnosis.decoding([*HEALTHY[:4], SLOW, SLOW], 0.01, None, IMAGES),
            WARNING,
            "ranks 4-5 (n3)",
            "780 images/s, where the median node has 1,600",
            "raise data.decode_threads where cores are idle, build smaller images",
        ),
        (
            diagnosis.decoding(HEALTHY, 0.01, 801, CLIPS),
            WARNING,
            "ranks 0-5",
            "1,600 clips/s, 25,600 frames/s of 1,602 needed",
            "build smaller videos (--resize)",
        ),
        (diagnosis.storage(HEALTHY, 0.01, 1810, CLIPS), WARNING, "ranks 0-5", "videos/s, 180 MB/s of 1,810 needed", ""),
        (
            diagnosis.gpu_decoding(
                HEALTHY, [*CHOICES[:3], replace(BEST, note="whole", remedy="install it"), BEST, BEST]
            ),
            WARNING,
            "rank 3 (n2)",
            "whole",
            "install it",
        ),
        (
            diagnosis.gpu_decoding(HEALTHY, [*CHOICES[:5], "the GPU cannot decode"]),
            PROBLEM,
            "rank 5 (n3)",
            "the GPU cannot decode",
            "docs/explanation/data.md",
        ),
        (
            diagnosis.memory(changed(2, memory=99 * 10**9), 5 * 10**10),
            WARNING,
            "rank 2 (n2)",
            "99.0 GB available, 100.00 GB for weights and snapshots",  # of the two ranks of the node
            "more nodes",
        ),
        (diagnosis.cores(HEALTHY, 9), WARNING, "ranks 0-5", "16 for 18 decoding threads", "data.decode_threads=8"),
        (diagnosis.cores(changed(0, quota=3.5), 2), WARNING, "rank 0", "3 for 4", "data.decode_threads=1"),
        (diagnosis.open_files(changed(3, open_files=256), 64), PROBLEM, "rank 3 (n2)", "256 of about 600", "ulimit -n"),
        (
            diagnosis.shared_memory(changed(3, shared_memory=64 * 2**20), SOUND),
            WARNING,
            "rank 3",
            "0.1 GiB",
            "--shm-size",
        ),
        (diagnosis.room(HEALTHY, 3 * 10**11, 4), WARNING, "rank 0", "room for 3", "free 200.0 GB"),
        (diagnosis.room(HEALTHY, 6 * 10**11, 4), PROBLEM, "rank 0", "room for 1", "free 1,400.0 GB"),
        (diagnosis.cache(changed(1, cache_room=10**9), 10**12), WARNING, "rank 1", "1 GB", "local disk"),
        (diagnosis.cache(changed(1, cache_room=0), None), PROBLEM, "rank 1", "cannot be written", "local disk"),
        (
            diagnosis.clocks(HEALTHY, [Clock(0, 0)] * 5 + [Clock(-1.2, 0.1)]),
            WARNING,
            "rank 5",
            "-1.200 s ± 0.100",
            "NTP",
        ),
        (diagnosis.clocks(HEALTHY, [Clock(0, 0)] * 5 + [Clock(-301, 0.1)]), PROBLEM, "rank 5", "-301", "NTP"),
        (
            diagnosis.network(HEALTHY, AllReduce(10**9, 6, 0.01, True), 400e9),
            WARNING,
            "ranks 0-5",
            "166.67 GB/s of 400 expected",
            "--network",
        ),
        (
            diagnosis.network(HEALTHY, AllReduce(10**9, 6, 0.01, False), None),
            PROBLEM,
            "ranks 0-5",
            "sum is wrong",
            "leave",
        ),
        (
            diagnosis.gpus(HEALTHY, [*SOUND[:5], replace(GPU, uncorrected=2)]),
            PROBLEM,
            "rank 5 (n3)",
            "H100, 2 unc",
            "reset",
        ),
        (
            diagnosis.gpus(HEALTHY, [*SOUND[:5], replace(GPU, slowdowns=("heat",))]),
            WARNING,
            "rank 5",
            "heat",
            "cooling",
        ),
        (diagnosis.gpus(HEALTHY, [*SOUND[:5], replace(GPU, temperature=85)]), WARNING, "rank 5", "85 °C", "cooling"),
        (
            diagnosis.gpus(HEALTHY, [*SOUND[:5], replace(GPU, taken=9 * GIB)]),
            WARNING,
            "rank 5",
            "9.0 GiB",
            "nvidia-smi",
        ),
        (
            diagnosis.gpus(HEALTHY, [*SOUND[:5], replace(GPU, nvml="no")]),
            WARNING,
            "rank 5",
            "unknown: no",
            "nvidia-ml-py",
        ),
    ],
    ids=lambda value: value.check if isinstance(value, Finding) else "",
)
def test_a_fault_is_judged_and_placed(finding: Finding, verdict: Verdict, place: str, result: str, remedy: str) -> None:
    assert finding.verdict is verdict
    worst = next(iter(finding.results.items()))
    assert place in worst[0] and result in worst[1] and remedy in finding.remedy and finding.remedy


def test_rates_count_what_is_read_and_what_the_model_sees() -> None:
    assert _counted(Data(shards="none", repeats=2)) == Counted("images", "images", 2)
    assert _counted(Data(shards="none", frames=16, repeats=2)) == CLIPS


@pytest.mark.parametrize(
    ("limit", "available"), [(None, 2000), ("max\n", 2000), ("5000000\n", 2000), ("1548000\n", 1500)]
)
def test_memory_is_the_nodes_or_what_its_container_has_left(tmp_path: Path, limit: str | None, available: int) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    2000 kB\n")
    if limit:
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text("12000\n")
    assert measure._memory(tmp_path / "meminfo", tmp_path) == available * 1024


def test_a_pinned_snapshot_takes_a_power_of_two() -> None:
    assert snapshot_bytes(910_000_000, pinned=False) == 3_640_000_000
    assert snapshot_bytes(910_000_000, pinned=True) == 2**32
    assert snapshot_bytes(2**28, pinned=True) == 2**30


def test_the_fastest_exchange_tells_the_clock() -> None:
    """A clock 5 s ahead, answering half-way of 0.2 s; slower ways, and less even ones, say less."""
    clock = clock_of([(10.0, 15.9, 11.0), (20.0, 25.1, 20.2), (30.0, 35.1, 30.9)])
    assert clock.ahead == pytest.approx(5.0)
    assert clock.bound == pytest.approx(0.1)


def test_an_image_is_decoded_once_for_all_of_its_masks() -> None:
    once, four_times = (load_recipe("demo", ["data.shards=none", f"mask.repeats={masks}"]) for masks in (1, 4))
    assert [_needed(once, 1000.0), _needed(four_times, 1000.0), _needed(four_times, None)] == [1000, 250, None]
