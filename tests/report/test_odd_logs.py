"""Files that lie in a run's folder and are not what the run would write: logging never ends it, numbers are checked."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import last_checkpoint, metrics, pretrain
from scripting import run_script

from pipeline.checkpoints.checkpoint import CheckpointError, Facts, read
from pipeline.checkpoints.saver import Saver
from pipeline.cluster.lock import _take
from pipeline.cluster.world import World
from pipeline.data.reader import Reader
from pipeline.files import entries, keep_lines, replace
from pipeline.pretrain.baselines import read_baselines
from pipeline.train.errors import TrainingError
from pipeline.train.nonfinite import left_out
from shards.manifest import Manifest

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def original(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps that has logged everything."""
    run = tmp_path_factory.mktemp("runs") / "run"
    pretrain(shards, run, "run.max_steps=4", "run.trace_samples=true", f"data.validation={shards}")
    return run


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


ODD = {
    "a number": b"5\n",
    "null": b"null\n",
    "a list": b"[1]\n",
    "no step": b'{"a": 1}\n',
    "a step in text": b'{"step": "9"}\n',
    "a step that is true": b'{"step": true}\n',
    "half a step": b'{"step": 0.5}\n',
    "bytes": b"\xff\xfe\x00\x01\n",
    "deep": b"[" * 10**5 + b"\n",
    "many digits": b'{"step": ' + b"1" * 5000 + b"}\n",
    "long": b'"' + b"x" * (2**24 + 9) + b'"\n',
    "torn": b'{"step": 4, "loss"',
    "empty": b"\n",
}


@pytest.mark.parametrize("odd", sorted(ODD))
def test_lines_that_are_not_the_runs_are_passed_over(tmp_path: Path, odd: str) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [f'{{"step": {step}}}\n'.encode() for step in (2, 4, 6)]
    path.write_bytes(lines[0] + ODD[odd].rstrip(b"\n") + b"\n" + lines[1] + ODD[odd])
    assert list(entries(path)) == [{"step": 2}, {"step": 4}]
    keep_lines(path, 4)
    assert path.read_bytes() == lines[0] + ODD[odd].rstrip(b"\n") + b"\n" + lines[1]
    path.write_bytes(b"".join(lines) + ODD[odd])
    keep_lines(path, 4)
    assert path.read_bytes() == lines[0] + lines[1]
    path.write_bytes(ODD[odd])
    keep_lines(path, 4)
    assert path.read_bytes() == b""


def immutable(path: Path) -> None:
    """Not to be opened for writing, by root neither."""
    path.unlink(missing_ok=True)
    path.symlink_to("/proc/version")


OBSTACLES: dict[str, Callable[[Path], Any]] = {
    "a folder": lambda path: (path.unlink(missing_ok=True), path.mkdir()),
    "a pipe": lambda path: (path.unlink(missing_ok=True), os.mkfifo(path)),
    "not to be written": immutable,
    "an odd line": lambda path: path.open("ab").write(b"5\n"),
}


@pytest.mark.parametrize("obstacle", sorted(OBSTACLES))
def test_no_file_of_logging_keeps_a_run_from_resuming(
    shards: Path, run: Path, obstacle: str, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ["metrics.jsonl", "quarantine.jsonl", "samples-rank0.jsonl"]
    for name in names:
        OBSTACLES[obstacle](run / name)
    shutil.rmtree(run / "tensorboard")
    shutil.rmtree(run / "pictures")
    for name in ("tensorboard", "pictures"):
        (run / name).write_bytes(b"")
    for name in ("config.yaml", "complete"):
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()
    pretrain(shards, run, "run.max_steps=6", "run.trace_samples=true", f"data.validation={shards}")
    assert last_checkpoint(run).facts.step == 6
    warned = [line for line in capfd.readouterr().out.splitlines() if line.startswith("warning: ")]
    curves = ["events", "validation", "baseline-zero", "baseline-mean"]
    expected = [*(f"tensorboard/{curve}" for curve in curves), "pictures", "config.yaml"]
    if obstacle != "an odd line":
        expected += ["metrics.jsonl", "samples-rank0.jsonl"]  # and quarantine.jsonl, where it cannot even be cut
    assert {name: sum(name in line for line in warned) for name in expected} == dict.fromkeys(expected, 1)
    assert len(warned) <= len(expected) + 1
    if obstacle == "an odd line":
        assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5, 6]


def test_links_in_a_runs_folder_have_no_other_file_written(shards: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"mine\n")
    names = (".lock", "metrics.jsonl", "quarantine.jsonl", "samples-rank0.jsonl", "config.yaml", "complete")
    for target in ("other", "new"):
        for name in names:
            (run / name).unlink(missing_ok=True)
            (run / name).symlink_to(tmp_path / target)
        assert not _take(run, 0)
        pretrain(shards, run, "run.max_steps=5", "run.trace_samples=true", f"data.validation={shards}")
        assert last_checkpoint(run).facts.step == 5
    assert (tmp_path / "other").read_bytes() == b"mine\n" and not (tmp_path / "new").exists()
    assert not (run / "config.yaml").is_symlink()


@pytest.mark.parametrize("place", [Path.touch, os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_what_lies_in_the_place_of_checkpoints_is_an_error_at_the_start(
    shards: Path, tmp_path: Path, place: Callable[[Path], Any]
) -> None:
    place(tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match=r"/checkpoints is not a folder: move it away"):
        pretrain(shards, tmp_path, "run.max_steps=1")


@pytest.mark.parametrize(
    "content",
    ['{"steps": "6789"}', '{"steps": [-1]}', '{"steps": [1.0]}', '{"steps": [true]}', '{"steps": [1, 1]}', "[" * 10**5,
     '{"steps": null}', '{"steps": {"1": 2}}', '{"steps": [1], "steps": [2]}', '{"steps": ["1"]}', "{}", "[1]"],
)  # fmt: skip
def test_what_is_left_out_is_a_list_of_steps_or_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "left-out.json").write_text(content)
    with pytest.raises(TrainingError, match=r"left-out\.json cannot be read .*restore it, or remove it") as caught:
        left_out(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_pipe_for_what_is_left_out_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "left-out.json").write_text('{"steps": [3, 4, 5], "reason": "no finite gradient"}\n')
    assert left_out(tmp_path) == [3, 4, 5]
    (tmp_path / "left-out.json").unlink()
    os.mkfifo(tmp_path / "left-out.json")
    with pytest.raises(TrainingError, match="not a regular file"):
        left_out(tmp_path)


def test_odd_baselines_are_measured_again(shards: Path, run: Path) -> None:
    right = read_baselines(run)
    assert set(right) == {"of", "zero", "mean", "untrained"}
    odd = [right | {"zero": "1"}, right | {"mean": True}, right | {"mean": None}, {"of": right["of"]}, [1], 5]
    for content in [*map(json.dumps, odd), json.dumps(right | {"untrained": float("nan")}), "[" * 10**5, ""]:
        (run / "baselines.json").write_text(content)
        assert read_baselines(run) == {}
    pretrain(shards, run, "run.max_steps=5", f"data.validation={shards}")
    assert read_baselines(run) == {name: right[name] for name in ("of", "zero", "mean")}


@pytest.mark.parametrize("stale", ["file", "link", "dangling link", "pipe", "folder"])
def test_a_save_clears_what_lies_in_its_place(tmp_path: Path, stale: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"")
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for name in (".step-00000001", ".step-00000000-old", "step-00000001", "step-00000007"):
        path = checkpoints / name
        {
            "file": lambda path: path.write_bytes(b"x"),
            "link": lambda path: path.symlink_to(outside),
            "dangling link": lambda path: path.symlink_to(tmp_path / "nowhere"),
            "pipe": os.mkfifo,
            "folder": Path.mkdir,
        }[stale](path)
    saver = Saver(checkpoints, ALONE, {"weight/a": (3,)}, keep=9, keep_every=None)
    saver.start([("weight/a", torch.ones(3))], Facts(1, {}, {}, {}))
    assert saver.wait() is None
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000001"]
    assert read(checkpoints / "step-00000001").shapes == {"weight/a": (3,)}
    assert (outside / "kept").exists()


def test_a_partial_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"mine")
    (tmp_path / ".file.partial").symlink_to(tmp_path / "other")
    replace(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content" and (tmp_path / "other").read_bytes() == b"mine"


def test_bad_samples_whose_names_cannot_be_had_are_quarantined(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "shards"
    shutil.copytree(shards, damaged)
    manifest = Manifest.load(damaged)
    with (damaged / manifest.shard_names[1]).open("r+b") as tar:
        for sample in range(17, 20):
            tar.seek(manifest.offset[sample] + 5)
            tar.write(b"damage")
    load = Manifest.load.__func__  # type: ignore[attr-defined]

    def load_and_lose(cls: type[Manifest], root: str) -> Any:
        found = load(cls, root)
        (damaged / "manifest.parquet").unlink()
        return found

    monkeypatch.setattr(Manifest, "load", classmethod(load_and_lose))
    pretrain(damaged, tmp_path / "run", "run.max_steps=6")
    lines = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == {17, 18, 19}
    assert all(line.keys() == {"step", "id", "reason", "shard"} for line in lines)
    assert {line["shard"] for line in lines} == {"shard-000001.tar"}
    assert last_checkpoint(tmp_path / "run").facts.step == 6


@pytest.mark.parametrize("instead", ["a pipe", "a device", "a folder", "nothing"])
def test_what_lies_in_the_place_of_a_tar_makes_bad_samples(shards: Path, tmp_path: Path, instead: str) -> None:
    damaged = tmp_path / "shards"
    shutil.copytree(shards, damaged)
    tar = damaged / "shard-000001.tar"
    tar.unlink()
    if instead == "a device":
        tar.symlink_to("/dev/zero")
    elif instead != "nothing":
        {"a pipe": os.mkfifo, "a folder": Path.mkdir}[instead](tar)
    good, *bad = Reader(Manifest.load(damaged)).submit(np.array([0, 16, 31])).result()
    assert not isinstance(good, str)
    assert all(isinstance(why, str) and why.startswith(f"{tar}: ") for why in bad)


def test_export_and_report_of_a_run_with_odd_logs(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(
            b'5\n[1]\n{"step": 4, "loss": null, "val_loss": null}\n{"step": 4, "loss": "x", "val_loss": []}\n\xff\n'
        )
    assert run_script(monkeypatch, "export.py", run, tmp_path / "out") == 0
    assert "| training loss at step 4 | not finite |" in (tmp_path / "out" / "README.md").read_text()
    assert run_script(monkeypatch, "report.py", run) == 0
    for content in (b"", b"5\n", b"\xff"):
        (run / "metrics.jsonl").write_bytes(content)
        assert run_script(monkeypatch, "report.py", run) == 1
        assert run_script(monkeypatch, "export.py", run, tmp_path / "again") == 0
    said = f"error: {run} is not a run that has logged a step; correct the path, or wait for its first log line"
    assert set(capfd.readouterr().err.splitlines()) == {said}
