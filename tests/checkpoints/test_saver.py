"""Saving: in the background, of the right step, atomically, whatever the disk or another rank does."""

import json
import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import SMALL, free_port, losses, metrics, pretrain
from ranks import Ranks
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.checkpoints import saver as saver_module
from pipeline.checkpoints.checkpoint import CheckpointError, Facts, newest, read
from pipeline.checkpoints.saver import Saver
from pipeline.cluster.world import World
from pipeline.train import loop
from pipeline.train.engine import Engine
from pipeline.train.state import capture

ALONE = World(0, 1, 0, 1, torch.device("cpu"))
MEGABYTE = 2**18  # of float32


def facts(step: int, note: str = "") -> Facts:
    return Facts(step, {}, {}, {"note": note})


def states(value: float, size: int = MEGABYTE) -> list[tuple[str, Tensor]]:
    return [("weight/a", torch.full((size,), value))]


def saver_in(folder: Path, size: int = MEGABYTE, keep: int = 9, keep_every: int | None = None) -> Saver:
    """One for `states` of that size."""
    return Saver(folder, ALONE, {"weight/a": (size,)}, keep=keep, keep_every=keep_every)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def value_of(folder: Path, step: int) -> list[float]:
    values: list[float] = read(folder / f"step-{step:08d}").weights()["a"].unique().tolist()
    return values


class Held:
    """A fact whose writing blocks until it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def __deepcopy__(self, memo: object) -> str:
        assert self.released.wait(60)
        return "released"


def test_training_goes_on_during_a_save_and_the_next_one_waits_for_it(tmp_path: Path) -> None:
    saver = saver_in(tmp_path)
    held = Held()
    saver.start(states(1), Facts(1, {"held": held}, {}, {}))
    assert names_in(tmp_path) in ([], [".step-00000001"])
    held.released.set()
    saver.start(states(2), facts(2))
    assert names_in(tmp_path)[-1] == "step-00000001"
    assert saver.wait() is None
    assert [value_of(tmp_path, step) for step in (1, 2)] == [[1], [2]]


def test_a_snapshot_is_not_changed_by_the_steps_after_it(tmp_path: Path) -> None:
    weight = torch.ones(MEGABYTE)

    def trained_on() -> Iterator[tuple[str, Tensor]]:
        yield "weight/a", weight
        weight.fill_(2)  # before anything is written

    saver = saver_in(tmp_path)
    saver.start(trained_on(), facts(1))
    assert saver.wait() is None
    assert value_of(tmp_path, 1) == [1]


def test_the_newest_and_every_fourth_are_kept(tmp_path: Path) -> None:
    saver = saver_in(tmp_path, 1, keep=2, keep_every=4)
    for step in range(1, 12):
        saver.start(states(step, 1), facts(step))
    assert saver.wait() is None
    assert names_in(tmp_path) == [f"step-{step:08d}" for step in (4, 8, 10, 11)]


class CountAllocations(TorchDispatchMode):
    """Counts the tensors made, by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name.startswith(("empty", "new_", "zeros", "full")) or name in ("clone", "_to_copy"):
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


def test_a_snapshot_is_one_allocation_whatever_the_saves_and_tensors(tmp_path: Path) -> None:
    tensors = {"weight/a": torch.rand(3, 5), "weight/b": torch.rand(()), "exp_avg/a": torch.rand(7)}
    with CountAllocations() as mode:
        saver = Saver(tmp_path, ALONE, {name: tuple(it.shape) for name, it in tensors.items()}, keep=9, keep_every=None)
        for step in (1, 2):
            for tensor in tensors.values():
                tensor.mul_(step)
            saver.start(tensors.items(), facts(step))
            assert saver.wait() is None
    assert mode.counts == {"empty": 1}
    save_file(tensors, tmp_path / "expected")
    assert (tmp_path / "step-00000002" / "part-00000.safetensors").read_bytes() == (tmp_path / "expected").read_bytes()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_checkpoint_is_what_the_engine_holds_at_every_stage(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    """Compare with the tensors written directly, without a snapshot, byte for byte."""
    held: dict[str, Tensor] = {}

    def recorded(engine: Engine, world: World) -> Iterator[tuple[str, Tensor]]:
        for name, state in capture(engine, world):
            held[name] = state.clone()
            yield name, state

    monkeypatch.setattr(loop, "capture", recorded)
    pretrain(shards, tmp_path / "run", f"engine.zero_stage={stage}", "run.max_steps=2", "run.save_every=1")
    save_file(held, tmp_path / "expected")
    part = tmp_path / "run" / "checkpoints" / "step-00000002" / "part-00000.safetensors"
    assert part.read_bytes() == (tmp_path / "expected").read_bytes()


def test_a_share_that_memory_cannot_hold_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"4000000\.00 GB, does not fit into the memory of its node: use more"):
        saver_in(tmp_path, 10**15)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_all_files_may_be_read_by_the_same_people(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        saver = saver_in(tmp_path, 1)
        saver.start(states(0, 1), facts(1))
        assert saver.wait() is None
    finally:
        os.umask(before)
    (folder,) = tmp_path.iterdir()
    assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == 3 * [mode]


def test_what_killed_saves_and_removals_left_is_removed(tmp_path: Path) -> None:
    for name in (".step-00000001-old", ".step-00000007"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part-00000.safetensors").write_bytes(b"half")
    saver = saver_in(tmp_path, 1)
    saver.start(states(7, 1), facts(7))
    assert saver.wait() is None
    assert names_in(tmp_path) == ["step-00000007"]


def test_a_save_that_would_fill_the_disk_is_not_begun(small_disk: Path) -> None:
    small = saver_in(small_disk)
    for step in (1, 2):
        small.start(states(step), facts(step))
    assert small.wait() is None and small.problems() == []
    saver = saver_in(small_disk, 10 * MEGABYTE)
    saver.start(states(3, 10 * MEGABYTE), facts(3))
    problem = saver.wait()
    assert problem is not None and problem.startswith("the save of step 3 failed: ")
    assert "has 0.07 GB free, but a checkpoint needs 0.01 and 0.07 GB to spare: free space" in problem
    assert saver.problems() == [problem] and saver.problems() == [] and saver.failures == 1
    assert names_in(small_disk) == ["step-00000001", "step-00000002"] and value_of(small_disk, 1) == [1]

    subprocess.run(["mount", "-o", f"remount,size={2 * saver_module.RESERVE}", small_disk], check=True)
    saver.start(states(4, 10 * MEGABYTE), facts(4))
    assert saver.wait() is None and saver.failures == 1
    assert names_in(small_disk)[-1] == "step-00000004"


@pytest.mark.parametrize(("size", "note"), [(80 * MEGABYTE, 0), (1, 80 * 2**20)], ids=["a part", "state.json"])
def test_a_disk_that_fills_while_a_save_is_written(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, size: int, note: int
) -> None:
    monkeypatch.setattr(saver_module, "RESERVE", -(2**30))  # as with quotas, which no figure of the disk's tells
    small = saver_in(small_disk)
    small.start(states(1), facts(1))
    assert small.wait() is None
    free = shutil.disk_usage(small_disk).free
    saver = saver_in(small_disk, size)
    saver.start(states(2, size), facts(2, "x" * note))
    problem = saver.wait()
    assert problem is not None and "the save of step 2 failed: " in problem and "No space left on device" in problem
    assert names_in(small_disk) == ["step-00000001"] and value_of(small_disk, 1) == [1]
    assert shutil.disk_usage(small_disk).free == free


def test_training_goes_on_without_room_for_checkpoints(
    shards: Path, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["run.max_steps=6", "run.save_every=2"]
    run = small_disk / "run"
    pretrain(shards, run, "run.max_steps=1")
    filler = small_disk / "filler"
    filler.write_bytes(bytes(2**23))
    with pytest.raises(
        CheckpointError, match=r"the save of step 6 failed: .* free space; the checkpoints before it are"
    ):
        pretrain(shards, run, *settings)
    assert "warning: the save of step 2 failed" in capsys.readouterr().out
    assert metrics(run)[-1]["failed_saves"] >= 1
    assert names_in(run / "checkpoints") == ["step-00000001"]

    filler.unlink()
    pretrain(shards, run, *settings)
    pretrain(shards, tmp_path / "whole", *settings)
    assert losses(run) == losses(tmp_path / "whole")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the observations of two processes that saved together, see saving_process.py."""
    out = tmp_path_factory.mktemp("two-ranks")
    ranks = Ranks(2, [str(out)], out / "said", free_port(), "tests/saving_process.py")
    statuses = ranks.wait(120)
    assert statuses == [0, -9], ranks.said()
    return out


@pytest.fixture
def seen(two_ranks: Path) -> list[dict[str, Any]]:
    return [json.loads((two_ranks / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_ranks_save_together(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        assert rank["no problem"] is None
        assert rank["values 1"] == {"0": [2.0], "1": [pytest.approx(2.1)]}


def test_a_disk_that_fails_one_rank_fails_the_save_on_all(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["problem"] == seen[1]["problem"]
    assert "the save of step 3 failed: " in seen[0]["problem"] and "part-00001" in seen[0]["problem"]
    assert seen[0]["left"] == ["step-00000001", "step-00000002"]
    assert seen[0]["next"] is seen[1]["next"] is None


def test_ranks_check_a_part_each_and_agree(seen: list[dict[str, Any]]) -> None:
    assert [rank["damaged 1"] for rank in seen] == [[2, 1], [2, 0]]  # only the first one reports
    assert [rank["damaged 0"] for rank in seen] == [[1, 2], [1, 0]]


def test_a_rank_that_does_not_come_is_not_waited_for_for_ever(seen: list[dict[str, Any]]) -> None:
    assert "imed out" in seen[0]["late"]


def test_a_rank_that_dies_during_a_save_leaves_no_checkpoint(two_ranks: Path, seen: list[dict[str, Any]]) -> None:
    assert "gloo" in seen[0]["lost"]
    assert not (two_ranks / "checkpoints" / "step-00000006").exists()
    said: list[str] = []
    found = newest(two_ranks / "checkpoints", said.append)
    assert found is not None and found.facts.step == 1 and len(said) == 2  # the two that were damaged


def test_a_save_is_overdue_some_minutes_after_the_last_one_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(saver_module.time, "monotonic", lambda: now)
    shapes = {"weight/a": (MEGABYTE,)}
    with (
        Saver(tmp_path / "a", ALONE, shapes, keep=9, keep_every=None, minutes=0.5) as saver,
        Saver(tmp_path / "b", ALONE, shapes, keep=9, keep_every=None) as never,
    ):
        now += 30
        assert not saver.overdue
        now += 1
        assert saver.overdue and not never.overdue
        saver.start(states(1), facts(1))
        assert not saver.overdue
        now += 31
        assert saver.overdue
        saver.wait()


def test_saves_by_the_clock_change_no_logged_line(shards: Path, tmp_path: Path) -> None:
    """They come at log steps; a run that resumes from one logs the same."""
    settings = ["run.log_every=3", "run.keep=9"]
    pretrain(shards, tmp_path / "without", *settings, "run.save_minutes=null", "run.max_steps=8")
    pretrain(shards, tmp_path / "with", *settings, "run.save_minutes=1e-6", "run.max_steps=8")
    assert names_in(tmp_path / "with" / "checkpoints") == ["step-00000003", "step-00000006", "step-00000008"]
    assert names_in(tmp_path / "without" / "checkpoints") == ["step-00000008"]
    shutil.rmtree(tmp_path / "with" / "checkpoints" / "step-00000008")
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    pretrain(shards, tmp_path / "with", *settings, "run.max_steps=8")
    assert losses(tmp_path / "with") == losses(tmp_path / "without")


HURRIED = """
import os

from pipeline.checkpoints.saver import Saver
from pipeline.config import Recipe
from pipeline.pretrain.task import Pretraining
from pipeline.train.command import leave, train

if os.environ["RANK"] == "1":
    Saver.overdue = True
leave(lambda: train("a run whose second rank always wants to save", Recipe, Pretraining))
"""


def test_the_clock_of_the_first_rank_decides_on_a_save(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "hurried.py").write_text(HURRIED)
    settings = [*SMALL, f"data.shards={shards}", f"run.dir={tmp_path / 'run'}", "run.max_steps=3", "run.deadline=30"]
    ranks = Ranks(2, ["demo", *settings], tmp_path / "said", free_port(), script=str(tmp_path / "hurried.py"))
    assert ranks.wait(120) == [0, 0], ranks.said()
    assert names_in(tmp_path / "run" / "checkpoints") == ["step-00000003"]
