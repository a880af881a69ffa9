"""`scripts/bench.py gpu`: it runs small without a GPU, and no failure costs earlier results."""

import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import CHECKOUT
from triton.errors import TritonError

sys.path.insert(0, str(CHECKOUT / "scripts"))  # as for a script there

from benchmarks.children import run
from benchmarks.figures import Figure
from benchmarks.films import ENCODINGS
from benchmarks.gpu import runner
from benchmarks.gpu.contest import Contestant, contest
from benchmarks.gpu.items import PARTS, PROCESSES, Process, items_of
from benchmarks.gpu.report import report
from benchmarks.gpu.results import Bench, Failure, LeftOut, Line, Part, read_lines
from benchmarks.gpu.scale import DRY
from benchmarks.plain import PlainEngine
from benchmarks.step import Loop
from pipeline.cluster.world import join
from pipeline.data.errors import DataError
from pipeline.settings import ConfigError

CPU = torch.device("cpu")


@pytest.fixture
def bench(shards: Path) -> Bench:
    return Bench(DRY, shards, shards.with_name("videos"), time.monotonic() + 600)


def test_all_of_it_runs_small_on_a_cpu(shards: Path, tmp_path: Path) -> None:
    """The same code from the first check to the last figure, so that no mistake of writing costs time on a GPU."""
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        [
            sys.executable,
            CHECKOUT / "scripts" / "bench.py",
            "gpu",
            shards,
            out,
            "--items=0-14",
            "--dry",
            "--seconds",
            "1200",
        ],
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    content = json.loads(out.read_text())
    assert content["failures"] == [] and content["dry"]
    assert content["seconds"].keys() == PARTS.keys()
    checks = {check["name"]: check for check in content["checks"]}
    assert all(check["passed"] for check in checks.values())
    for kind in ("4:2:0", "4:4:4", "grey", "progressive", "CMYK", "EXIF 1", "EXIF 3", "EXIF 6", "EXIF 8"):
        assert f"pixels of JPEG {kind}, hw_decoder_load=1" in checks
    assert sum(name.startswith("kernel") for name in checks) == 24 + 12 + 4  # of images, of scales and of clips
    assert {f"frames of {name}" for name in ENCODINGS} < checks.keys()
    assert {"rescue of a bad video, cut off", "masks of the kernel of cubes"} < checks.keys()
    assert sum(name.startswith("no wait") for name in checks) == 4
    figures = {figure["name"]: figure for figure in content["figures"]}
    for name, figure in figures.items():
        if name.startswith("loss"):
            assert all(peer["ratio"] == pytest.approx(1, rel=2e-3) for peer in figure["peers"].values())
    (loaders,) = (figure for name, figure in figures.items() if name.startswith("crops of 16 px from shards"))
    assert loaders["peers"].keys() == {"bare DALI", "webdataset + torchvision"}
    left_out = " ".join(f"{entry['name']}: {entry['why']}" for entry in content["left out"])
    for what in ("time of the kernel", "share of the peak", "the GPU decodes", "the CUDA runtime", "idles", "by NVDEC"):
        assert what in left_out
    rates = [figure for name, figure in figures.items() if name.startswith("training step") and "frames of" in name]
    assert len(rates) == 3 and all(figure["unit"] == "clips/s" for figure in rates)  # two models, one also from shards
    table = out.with_suffix(".md").read_text()
    assert table in done.stdout and table.count("\n| ") > len(checks) + len(figures)
    assert "found: libnvjpeg" in done.stdout or "missing: libnvjpeg" in done.stdout


def test_a_contestant_that_cannot_run_costs_only_itself(bench: Bench) -> None:
    world, recipe = join(), bench.scale.base()

    def fail() -> Loop:
        raise TritonError("out of resources")

    found = contest(
        bench,
        [
            Contestant("ours", 1, lambda: Loop(recipe, world)),
            Contestant("broken", 1, fail),
            Contestant("plain", 1, lambda: Loop(recipe, world, PlainEngine)),
        ],
        loops := {},
    )
    first = next(found)
    assert isinstance(first, Figure) and first.achieved > 0 and first.peers == {}  # before the others are built
    assert loops.keys() == {"ours"}
    rest = list(found)
    (failure,) = (result for result in rest if isinstance(result, Failure))
    assert failure.name == "broken" and "out of resources" in failure.why
    assert rest[-1].peers.keys() == {"plain"}  # type: ignore[union-attr]


def test_a_first_contestant_that_cannot_run_ends_the_contest(bench: Bench) -> None:
    def fail() -> Loop:
        raise RuntimeError("no")

    assert [type(result) for result in contest(bench, [Contestant("ours", 1, fail)] * 2, {})] == [Failure]


def test_what_takes_longer_than_is_left_is_left_out(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    real = replace(DRY, dry=False)
    assert Bench(real, shards, shards, time.monotonic() + 100).too_late("ours", 60) is None
    assert Bench(real, shards, shards, time.monotonic() + 50).too_late("ours", 60) == LeftOut(
        "ours", "estimated at 60 s, 50 s were left"
    )


CHILD = """
import json, os, signal, sys, time
names = sys.argv[2:sys.argv.index("--shards")]
with open(sys.argv[sys.argv.index("--lines") + 1], "a") as lines:
    def write(part, kind, content):
        lines.write(chr(10) + json.dumps({"item": 1, "part": part, "kind": kind, "content": content}))
        lines.flush()
    for name in names:
        write(name, "check", {"name": name, "passed": True, "numbers": {}})
        if name == "dies":
            os.kill(os.getpid(), signal.SIGSEGV)
        if name == "hangs":
            time.sleep(600)
        write(name, "seconds", 1.0)
"""


def test_a_part_that_dies_or_hangs_costs_no_other(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its results so far are kept, and later parts get another process."""
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.setattr(runner, "_SCRIPT", tmp_path / "child.py")
    monkeypatch.setattr(runner, "_START", 0)
    lines = tmp_path / "gpu.jsonl"
    parts = [Part(1, name, lambda bench: iter([])) for name in ("one", "dies", "two", "hangs", "three")]
    runner._run(parts, 5, time.monotonic() + 60, shards, shards, lines, {}, False)
    runner._run(parts[:1], 5, time.monotonic() - 1, shards, shards, lines, {}, False)
    found = read_lines(lines)
    assert [line.content["name"] for line in found if line.kind == "check"] == ["one", "dies", "two", "hangs"]
    failures = {line.content["name"]: line.content["why"] for line in found if line.kind == "failure"}
    assert failures.keys() == {"dies", "hangs"}
    assert "exit status -11" in failures["dies"] and "stopped after" in failures["hangs"]
    assert [line.part for line in found if line.kind == "left out"] == ["three", "one"]
    assert report(lines, tmp_path / "gpu.json").right is False


def test_halves_meet_in_one_file(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An item that is run again replaces what there was of it; a trial and a GPU do not mix."""
    processes = [Process(60, [Part(item, f"part {item}", lambda bench: iter([]))]) for item in (1, 5)]
    monkeypatch.setattr(runner, "PROCESSES", processes)
    taken = []

    def fake(
        parts: list[Part],
        limit: float,
        end: float,
        shards: Path,
        videos: Path,
        lines: Path,
        environment: Any,
        dry: bool,
    ) -> None:
        for part in parts:
            taken.append(part.name)
            with lines.open("a") as file:
                for result in (Figure("rate", "images/s", len(taken)), Figure("rate", "images/s", 10 * len(taken))):
                    file.write(Line.of(part, result).to_json() + "\n")
                facts = {"device": "a GPU", "driver": None, "cores": 1, "versions": {}, "dry": dry}
                file.write(Line(part.item, part.name, "machine", facts).to_json() + "\n")

    monkeypatch.setattr(runner, "_run", fake)
    out = tmp_path / "gpu.json"
    assert runner.gpu(shards, out, {1}, dry=True)
    assert runner.gpu(shards, out, {5}, dry=True)
    assert runner.gpu(shards, out, {1}, dry=True)
    figures = json.loads(out.read_text())["figures"]
    assert taken == ["part 1", "part 5", "part 1"]
    assert [figure["achieved"] for figure in figures] == [20, 30]  # of each the last
    assert out.with_suffix(".md").read_text().count("| rate |") == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(DataError, match="is of a trial"):
        runner.gpu(shards, out, {1}, dry=False)


def test_without_a_gpu_there_is_only_the_trial(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no GPU: --dry tries"):
        runner.gpu(shards, tmp_path / "gpu.json", {0}, dry=False)


def test_figures_of_two_machines_are_not_right(tmp_path: Path) -> None:
    lines = tmp_path / "gpu.jsonl"
    facts = {"driver": None, "cores": 1, "versions": {}, "dry": False}
    machines = (Line(nth, "part", "machine", facts | {"device": f"GPU {nth}"}).to_json() for nth in range(2))
    lines.write_text("\n".join(machines) + '\n{"item": 3, "part": "a line that was cut')
    found = report(lines, tmp_path / "gpu.json")
    assert not found.right and "different machines: GPU 0, GPU 1" in found.text
    runner._add(lines, Part(3, "part", lambda bench: iter([])), LeftOut("after the cut", ""))
    assert [line.kind for line in read_lines(lines)] == ["machine", "machine", "left out"]


def test_a_process_that_hangs_or_fails_is_told(tmp_path: Path) -> None:
    shell = "echo begun; sleep 600 & wait"
    problem = run(["sh", "-c", shell], {"PATH": "/usr/bin:/bin"}, seconds=2)
    assert "stopped after 2 s" in problem and "begun" in problem
    assert run(["sh", "-c", "echo why; exit 3"], {"PATH": "/usr/bin:/bin"}, 30) == "exit status 3; it said last: why\n"
    assert run(["true"], {"PATH": "/usr/bin:/bin"}, 30) == ""
    run(["sh", "-c", f"sleep 600 & echo $! > {tmp_path}/left; exit 3"], {"PATH": "/usr/bin:/bin"}, 30)
    left = Path(f"/proc/{(tmp_path / 'left').read_text().strip()}/stat")
    with suppress(OSError):  # it ended meanwhile
        while left.read_text().split()[2] != "Z":  # for ever, had it not been killed
            time.sleep(0.05)


def test_videos_fit_in_the_time_of_a_call() -> None:
    assert sum(process.seconds for process in PROCESSES if process.parts[0].item >= 10) <= runner.SECONDS


@pytest.mark.parametrize("items", ["5-", "x", "15", "4-2", ""])
def test_items_that_are_none_are_refused(items: str) -> None:
    assert items_of("0-2,9") == {0, 1, 2, 9}
    with pytest.raises(ConfigError, match=f"--items {items}: give some of 0 to 14"):
        items_of(items)
