"""Faults at every moment of a run of two ranks: all end by themselves, and the next life makes up for it exactly.

Each row is a fault and a moment. What is compared with the undisturbed run: which samples each step took, over all
lives of the run, and the final weights, bit for bit.
"""

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from launching import launch, start, trace
from ranks import Ranks

from pipeline.checkpoints.checkpoint import newest

OPTIONS = ["run.max_steps=16", "run.save_every=4", "run.trace_samples=true", "run.deadline=12"]


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    launch(shards, run, *OPTIONS)
    return run


def lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "start-up": lambda run: run.exists(),
    "first step": lambda run: lines(run) >= 1,
    "epoch end": lambda run: lines(run) >= 6,  # 90 images in batches of 16
    "save": lambda run: any(run.glob("checkpoints/.step-*")),
    "after a save": lambda run: any(run.glob("checkpoints/step-*")),
}


def lose_a_rank(ranks: Ranks, run: Path) -> None:
    ranks.signal(1, signal.SIGKILL)
    assert ranks.wait(60) == [1, -signal.SIGKILL]
    assert "error: rank 0 lost another rank, whose own error tells why (" in ranks.said()


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
    (lose_a_rank, "first step"),
    (lose_a_rank, "save"),
    (lose_the_first_rank, "epoch end"),
    (lose_the_node, "start-up"),
    (lose_the_node, "save"),
    (stop_a_rank, "after a save"),
    (ask_a_rank_to_stop, "epoch end"),
]


@pytest.mark.parametrize(("fault", "moment"), ROWS, ids=lambda part: getattr(part, "__name__", part))
def test_the_next_life_makes_up_for_it(
    shards: Path, undisturbed: Path, tmp_path: Path, fault: Callable[[Ranks, Path], None], moment: str
) -> None:
    run = tmp_path / "run"
    ranks = start(shards, run, *OPTIONS)
    ranks.until(lambda: MOMENTS[moment](run))
    fault(ranks, run)
    launch(shards, run, *OPTIONS)
    assert_equal(run, undisturbed)


def test_killed_again_and_again_while_it_resumes(shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ranks = start(shards, run, *OPTIONS)
    ranks.until(lambda: MOMENTS["after a save"](run))
    ranks.kill()
    for delay in (0.2, 0.4, 0.8):
        ranks = start(shards, run, *OPTIONS)
        time.sleep(delay)  # somewhere in reading its checkpoint and building the engine
        ranks.kill()
    launch(shards, run, *OPTIONS)
    assert_equal(run, undisturbed)


def assert_equal(run: Path, undisturbed: Path) -> None:
    for rank in (0, 1):
        assert trace(run, rank) == trace(undisturbed, rank)
    ended, expected = (newest(folder / "checkpoints", report=print) for folder in (run, undisturbed))
    assert ended and expected and ended.facts.step == expected.facts.step == 16
    weights = ended.weights()
    for name, value in expected.weights().items():
        assert torch.equal(weights[name], value), name
