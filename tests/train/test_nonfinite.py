"""Steps without a finite gradient: nothing is updated, they are counted, and a row of them rolls the run back, once."""

import errno
import json
import os
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import metrics, pretrain
from servers import http_server
from torch import Tensor

from pipeline.checkpoints.checkpoint import newest
from pipeline.cluster.phases import Phases
from pipeline.examples import Example, ExampleMaker
from pipeline.train.errors import TrainingError
from pipeline.train.nonfinite import NonFinite, TooManyNonFinite, leave_out, left_out

Spoil = Callable[[Container[int]], None]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """Put an infinite pixel into the images of some steps, as broken memory would."""

    def put(steps: Container[int]) -> None:
        begun: list[Phases] = []
        enter, example = Phases.__enter__, ExampleMaker.example

        def remember(phases: Phases) -> Phases:
            begun[:] = [phases]
            return enter(phases)

        def spoiled(maker: ExampleMaker, images: Tensor, keys: Tensor, repeats: int) -> Example:
            made = example(maker, images, keys, repeats)
            if begun[0].step in steps:
                made.inputs[0, 0, 0, 0] = torch.inf
            return made

        monkeypatch.setattr(Phases, "__enter__", remember)
        monkeypatch.setattr(ExampleMaker, "example", spoiled)

    return put


def weights(run: Path) -> dict[str, Tensor]:
    found = newest(run / "checkpoints", report=print)
    assert found
    return found.weights()


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.mark.parametrize("settings", ["0 fp32", "0 bf16", "1 bf16", "2 fp32", "3 bf16", "1 fp16"])
def test_a_step_without_a_finite_gradient_changes_nothing(
    shards: Path, tmp_path: Path, spoil: Spoil, settings: str
) -> None:
    stage, precision = settings.split()
    options = [f"engine.zero_stage={stage}", f"engine.precision={precision}", "run.max_steps=5"]
    options += ["run.log_every=5"]
    (tmp_path / "passed").mkdir()
    leave_out(tmp_path / "passed", [2])
    pretrain(shards, tmp_path / "passed", *options)
    spoil([2])
    pretrain(shards, tmp_path / "spoiled", *options)
    assert_equal(weights(tmp_path / "spoiled"), weights(tmp_path / "passed"))
    (spoiled,), (passed,) = metrics(tmp_path / "spoiled"), metrics(tmp_path / "passed")
    assert spoiled["skipped_steps"] == passed["skipped_steps"] == 1
    assert (spoiled["nonfinite_steps"], passed["nonfinite_steps"]) == (0 if precision == "fp16" else 1, 0)
    assert spoiled["loss"] == pytest.approx(passed["loss"], rel=0.01)  # the mean of the losses that are finite


def test_a_row_of_them_rolls_the_run_back_and_passes_over_them(
    shards: Path, tmp_path: Path, spoil: Spoil, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["run.max_steps=9", "run.save_every=2", "run.nonfinite_in_a_row=3", "run.trace_samples=true"]
    (tmp_path / "passed").mkdir()
    leave_out(tmp_path / "passed", [3, 4, 5])
    pretrain(shards, tmp_path / "passed", *options)
    spoil([3, 4, 5])
    pretrain(shards, tmp_path / "run", *options)
    assert "no finite gradient in 3 steps in a row, 3 to 5: rolling back" in capsys.readouterr().out
    assert left_out(tmp_path / "run") == [3, 4, 5]
    assert_equal(weights(tmp_path / "run"), weights(tmp_path / "passed"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "samples-rank0.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} >= {0, 1, 2, 6, 7, 8}


def test_the_life_after_a_rollback_fills_the_cache(shards: Path, tmp_path: Path, spoil: Spoil) -> None:
    spoil([3, 4, 5])
    with http_server(shards) as server:
        options = ["run.max_steps=40", "run.save_every=2", "run.nonfinite_in_a_row=3", f"data.cache={tmp_path}/cache"]
        pretrain(server.url, tmp_path / "run", *options)
    last = metrics(tmp_path / "run")[-1]
    assert last["nonfinite_steps"] == 0 and left_out(tmp_path / "run") == [3, 4, 5]
    assert last["data/cache_owners"] == 1 and last["data/cache_shards"] > 0


def test_a_second_row_ends_the_run(shards: Path, tmp_path: Path, spoil: Spoil) -> None:
    spoil(range(3, 100))
    options = ["run.max_steps=30", "run.save_every=2", "run.nonfinite_in_a_row=3"]
    with pytest.raises(TrainingError, match=r"6 to 8, after the run had rolled back once: .*optim\.lr"):
        pretrain(shards, tmp_path / "run", *options)
    assert newest(tmp_path / "run" / "checkpoints", report=print)


def test_a_roll_back_that_cannot_be_written_down(
    shards: Path, tmp_path: Path, spoil: Spoil, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil([3, 4, 5])
    monkeypatch.setattr("pipeline.train.nonfinite.replace", full)
    options = ["run.max_steps=9", "run.save_every=3", "run.nonfinite_in_a_row=3"]
    expected = r"3 to 5, and .*/run/left-out\.json, .* cannot be written \(No space left on device\): free space there"
    with pytest.raises(TrainingError, match=expected):
        pretrain(shards, tmp_path / "run", *options)
    monkeypatch.undo()
    spoil([3, 4, 5])
    pretrain(shards, tmp_path / "run", *options)
    assert left_out(tmp_path / "run") == [3, 4, 5]


def test_a_run_whose_end_cannot_be_written_down(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    touch = Path.touch
    monkeypatch.setattr(Path, "touch", lambda path, **how: full() if path.name == "complete" else touch(path, **how))
    pretrain(shards, tmp_path / "run", "run.max_steps=1")
    assert f"warning: {tmp_path}/run/complete cannot be written (No space left on device)" in capsys.readouterr().out
    assert newest(tmp_path / "run" / "checkpoints", report=print)


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_fp16_without_any_finite_gradient_ends_the_run(stage: int, shards: Path, tmp_path: Path, spoil: Spoil) -> None:
    spoil(range(100))
    options = ["run.max_steps=60", "engine.precision=fp16", f"engine.zero_stage={stage}"]
    with pytest.raises(TrainingError, match=r"however small fp16's loss scale: .*optim\.lr"):
        pretrain(shards, tmp_path / "run", *options)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"steps": 3}', b"\xff", b'{"steps": ["a"]}'])
def test_a_torn_record_of_what_is_left_out_is_named(tmp_path: Path, content: bytes) -> None:
    assert left_out(tmp_path) == []
    (tmp_path / "left-out.json").write_bytes(content)
    with pytest.raises(TrainingError, match=r"left-out\.json cannot be read .*restore it, or remove it"):
        left_out(tmp_path)


def test_only_steps_in_a_row_count() -> None:
    watch = NonFinite(3)
    flags: list[Any] = [1, 1, 0, 1, 1, 0]
    for step, flag in enumerate(flags):
        watch.note(step, torch.tensor(float(flag)))
    assert watch.count() == 4
    assert watch.count() == 0
    for step in (6, 7):
        watch.note(step, torch.tensor(1.0))
    assert watch.count() == 2
    watch.note(8, torch.tensor(1.0))
    with pytest.raises(TooManyNonFinite) as caught:
        watch.count()
    assert caught.value.steps == [6, 7, 8]
