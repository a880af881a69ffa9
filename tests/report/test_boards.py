"""Boards beside TensorBoard: the real packages offline, one run for all attempts, and none that ends the training."""

import json
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from launching import losses, pretrain, small_recipe
from mlflow import MlflowClient
from wandb.proto import wandb_internal_pb2

from pipeline.report import background, boards
from pipeline.report.background import Background
from pipeline.report.board import Board
from pipeline.report.boards import check_boards
from pipeline.report.charts import flat_name
from pipeline.settings import ConfigError


def wandb_records(run: Path) -> Iterator[Any]:
    """Everything that W&B has written of the attempts of a run, in their order.

    Its files are LevelDB's logs (leveldb/doc/log_format.md) with a header of 7 bytes.
    """
    for file in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        data, at, message = file.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if (left := 2**15 - at % 2**15) < 7:
                at += left
                continue
            length, kind = struct.unpack_from("<HB", data, at + 4)
            message += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or the last part
                yield wandb_internal_pb2.Record.FromString(message)
                message = b""


def wandb_history(run: Path) -> dict[int, dict[str, str]]:
    """Values as JSON, by step and name."""
    history: dict[int, dict[str, str]] = {}
    for record in wandb_records(run):
        if record.WhichOneof("record_type") == "history":
            values = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            history.setdefault(int(values["step"]), {}).update(values)
    return history


def test_wandb_shows_a_run_as_one_whatever_its_attempts(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "my run"
    for steps in (2, 4):
        settings = [f"data.validation={shards}", "run.eval_every=4", f"run.max_steps={steps}"]
        pretrain(shards, run, *settings, "run.boards=[tensorboard, wandb]", "run.histogram_every=4")
    deadline = time.monotonic() + 30
    while [record.WhichOneof("record_type") for record in wandb_records(run)].count("exit") < 2:
        assert time.monotonic() < deadline  # a process of W&B's own writes
        time.sleep(0.1)
    history = wandb_history(run)
    shown = {step: float(values["loss/training"]) for step, values in history.items() if "loss/training" in values}
    assert shown == pytest.approx(losses(run))
    assert {"loss/validation", "loss/baseline-mean", "optimizer/learning_rate"} <= history[4].keys()
    assert json.loads(history[4]["weights/mask_token/_type"]) == "histogram"
    assert sum(json.loads(history[4]["weights/mask_token/values"])) == 32
    assert not any(name.startswith("weights/") for step in (1, 2, 3) for name in history[step])
    assert {step for step, values in history.items() if "reconstruction/path" in values} == {0, 2, 4}
    runs = [record.run for record in wandb_records(run) if record.WhichOneof("record_type") == "run"]
    assert {(of.run_id, of.display_name, of.project) for of in runs} == {
        ((run / "wandb.id").read_text(), "my run", "maskfeat")
    }
    assert (run / "tensorboard").is_dir()


def test_mlflow_shows_a_run_as_one_whatever_its_attempts(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = tmp_path / "my run"
    for steps in (2, 4):
        settings = [f"data.validation={shards}", "run.eval_every=4", f"run.max_steps={steps}"]
        pretrain(shards, run, *settings, "run.boards=[mlflow]")
    client = MlflowClient()
    experiment = client.get_experiment_by_name("maskfeat")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "my run" and found.info.status == "FINISHED"
    points = client.get_metric_history(found.info.run_id, "loss/training")
    assert {point.step: point.value for point in points} == pytest.approx(losses(run))
    assert client.get_metric_history(found.info.run_id, "loss/baseline-mean")
    assert found.data.params["optim.batch_size"] == "16"
    assert not (run / "tensorboard").exists()


def test_names_of_curves_where_a_chart_has_one() -> None:
    assert flat_name("loss") == "loss/training"
    assert flat_name("val_loss") == "loss/validation"
    assert flat_name("images_per_second") == "speed/images_per_second"


class Broken:
    """A `Board` that fails at odd steps."""

    def __init__(self) -> None:
        self.shown: list[int] = []

    def scalars(self, step: int, values: Any) -> None:
        if step % 2:
            raise ConnectionError("no route\nto host")
        self.shown.append(step)

    def close(self) -> None:
        raise ConnectionError("still none")


def test_a_board_that_fails_is_told_of_and_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    broken = Broken()
    board = Background("a board", lambda: cast(Board, broken))
    for step in (1, 3, 4, 5, 6):
        board.scalars(step, {})
    board.close()
    assert broken.shown == [4, 6]
    told = capsys.readouterr().out.splitlines()
    assert told[0] == r"warning: a board fails, training continues: no route\nto host"
    assert len(told) == 3  # at steps 1 and 5, and at its end


def test_a_board_that_cannot_be_opened_or_hangs_keeps_nobody_waiting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "PATIENCE", 0.2)
    monkeypatch.setattr(background, "MOST_WAITING", 3)

    def refuse() -> Board:
        raise RuntimeError("not logged in")

    refused = Background("one board", refuse)
    refused._thread.join(10)
    refused.scalars(1, {})
    refused.close()
    released = threading.Event()
    hanging = Background("another", lambda: cast(Board, released.wait()))
    began = time.monotonic()
    for step in range(10):
        hanging.scalars(step, {})
    hanging.close()
    assert time.monotonic() - began < 5
    said = capsys.readouterr().out.splitlines()
    released.set()
    hanging._thread.join(60)
    assert said == [
        "warning: one board cannot be used, training continues without it: not logged in",
        "warning: another does not keep up, training continues: what is new is not shown there",
        "warning: another does not answer: it does not show the end of this run",
    ]


def test_what_is_missing_is_one_line_before_anything_starts(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="name its server in MLFLOW_TRACKING_URI"):
        pretrain(shards, tmp_path / "run", "run.boards=[mlflow]")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(boards, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'maskfeat-pipeline\[wandb\]'"):
        check_boards(["wandb"])
    check_boards(["tensorboard"])
    with pytest.raises(ConfigError, match=r"run\.boards"):
        small_recipe(shards, tmp_path, "run.boards=[visdom]")
