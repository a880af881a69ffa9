"""Faults at every moment of a run of two ranks: all ranks end by themselves, and the next attempt resumes exactly.

Each row is a kind of data, a fault and a moment. What is compared with the undisturbed run: which samples each step
took, and of clips which frames, over all lives of the run, and the final weights, bit for bit.
"""

import json
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import assert_same_weights, last_checkpoint, launch, start
from ranks import Ranks

OPTIONS = ["run.max_steps=32", "run.save_every=4", "run.trace_samples=true", "run.deadline=12"]
CLIPS = ["data.image_size=64", "data.frames=4", "data.sampling=stride", "data.stride=2", "data.repeats=2"]


@dataclass(frozen=True)
class Bench:
    """A data set, the options of runs on it, and the run that nothing disturbed."""

    shards: Path
    options: list[str]
    undisturbed: Path


def prepared(shards: Path, options: list[str], folder: Path) -> Bench:
    launch(shards, folder / "run", *options)
    return Bench(shards, options, folder / "run")


@pytest.fixture(scope="module")
def images_bench(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return prepared(shards, OPTIONS, tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def clips_bench(video_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Two clips of each of 8 videos a step."""
    return prepared(video_shards, [*OPTIONS, *CLIPS], tmp_path_factory.mktemp("clips"))


def lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "start-up": lambda run: run.exists(),
    "first step": lambda run: lines(run) >= 1,
    "epoch end": lambda run: lines(run) >= 6,  # of 90 images in batches of 16, or the second of 22 videos, 8 a step
    "save": lambda run: any(run.glob("checkpoints/.step-*")),
    "after a save": lambda run: any(run.glob("checkpoints/step-*")),
}


def lose_a_rank(ranks: Ranks, run: Path) -> None:
    ranks.signal(1, signal.SIGKILL)
    assert ranks.wait(60) == [1, -signal.SIGKILL]
    assert "error: rank 0 lost another rank, whose own error says why (" in ranks.said()


def lose_the_first_rank(ranks: Ranks, run: Path) -> None:
    ranks.signal(0, signal.SIGKILL)
    assert ranks.wait(60) == [-signal.SIGKILL, 1]


def lose_the_node(ranks: Ranks, run: Path) -> None:
    ranks.kill()


def stop_a_rank(ranks: Ranks, run: Path) -> None:
    """It neither answers nor closes its connections, as behind a cut cable."""
    ranks.signal(1, signal.SIGSTOP)
    stopped = time.monotonic()
    while ranks.wait(0)[0] is None:
        assert time.monotonic() - stopped < 60, "rank 0 waits for a stopped rank for ever"
        time.sleep(0.1)
    assert ranks.wait(0)[0] == 1
    known = re.search(r"error: rank 0 has been in '([a-z ]+)' of step (\d+) for 12 s", ranks.said())
    assert known, ranks.said()
    stacks = (run / "stacks-rank0.txt").read_text()
    assert f"rank 0 has been in '{known[1]}' of step {known[2]}" in stacks and "pipeline/train/loop.py" in stacks
    ranks.kill()  # as its launcher would


def ask_a_rank_to_stop(ranks: Ranks, run: Path) -> None:
    ranks.signal(1, signal.SIGUSR1)
    assert ranks.wait(60) == [75, 75]
    assert "as asked; the same command resumes from there" in ranks.said()


ROWS = [
    ("images", lose_a_rank, "first step"),
    ("images", lose_a_rank, "save"),
    ("images", lose_the_first_rank, "epoch end"),
    ("images", lose_the_node, "start-up"),
    ("images", lose_the_node, "save"),
    ("images", stop_a_rank, "after a save"),
    ("images", ask_a_rank_to_stop, "epoch end"),
    ("clips", lose_a_rank, "first step"),
    ("clips", lose_the_first_rank, "save"),
    ("clips", lose_the_node, "epoch end"),
    ("clips", stop_a_rank, "after a save"),
    ("clips", ask_a_rank_to_stop, "epoch end"),
]


@pytest.mark.parametrize(("kind", "fault", "moment"), ROWS, ids=lambda part: getattr(part, "__name__", part))
def test_the_next_life_makes_up_for_it(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, fault: Callable[[Ranks, Path], None], moment: str
) -> None:
    bench, run = request.getfixturevalue(f"{kind}_bench"), tmp_path / "run"
    ranks = start(bench.shards, run, *bench.options)
    ranks.until(lambda: MOMENTS[moment](run))
    fault(ranks, run)
    launch(bench.shards, run, *bench.options)
    assert_equal(run, bench.undisturbed)


@pytest.mark.parametrize("kind", ["images", "clips"])
def test_killed_again_and_again_while_it_resumes(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    bench, run = request.getfixturevalue(f"{kind}_bench"), tmp_path / "run"
    ranks = start(bench.shards, run, *bench.options)
    ranks.until(lambda: MOMENTS["after a save"](run))
    ranks.kill()
    for delay in (0.2, 0.4, 0.8):
        ranks = start(bench.shards, run, *bench.options)
        time.sleep(delay)  # somewhere in reading its checkpoint and building the engine
        ranks.kill()
    launch(bench.shards, run, *bench.options)
    assert_equal(run, bench.undisturbed)


@pytest.mark.parametrize("number", [1, 4])
def test_a_killed_run_of_clips_resumes_on_other_ranks(clips_bench: Bench, tmp_path: Path, number: int) -> None:
    """With the same samples and frames; weights differ by the order in which gradients are added up."""
    run = tmp_path / "run"
    ranks = start(clips_bench.shards, run, *clips_bench.options)
    ranks.until(lambda: MOMENTS["after a save"](run))
    ranks.kill()
    launch(clips_bench.shards, run, *clips_bench.options, ranks=number)
    assert taken(run) == taken(clips_bench.undisturbed)
    weights, expected = last_checkpoint(run).weights(), last_checkpoint(clips_bench.undisturbed).weights()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=0)


def traces(run: Path) -> list[list[dict[str, Any]]]:
    """Return the lines of each rank's trace."""
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(run.glob("samples-rank*"))]


def taken(run: Path) -> dict[int, tuple[list[int], list[list[int]]]]:
    """Return the samples of each step, and the frames of their clips, over all ranks."""
    steps: dict[int, tuple[list[int], list[list[int]]]] = {}
    for line in chain.from_iterable(traces(run)):
        ids, frames = steps.setdefault(line["step"], ([], []))
        ids += line["ids"]
        frames += line["frames"]
    return steps


def assert_equal(run: Path, undisturbed: Path) -> None:
    assert traces(run) == traces(undisturbed) and len(traces(run)) == 2
    assert last_checkpoint(run).facts.step == last_checkpoint(undisturbed).facts.step == 32
    assert_same_weights(run, undisturbed)
