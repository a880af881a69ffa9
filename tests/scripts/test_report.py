"""The output of scripts/report.py."""

import json
from pathlib import Path

import pytest
from scripting import run_script


def test_a_run_of_fine_tuning_is_told_by_its_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        {"step": 20, "loss": 1.5, "val_loss": 1.25, "val_top1": 0.5, "val_top5": 0.875},
        {"step": 40, "loss": 1.0, "val_loss": None, "val_top1": 0.625, "val_top5": 1.0, "val_top1_ema": 0.65},
        {"step": 50, "loss": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert run_script(monkeypatch, "report.py", tmp_path) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"run            {tmp_path}: step 50, training loss 0.5000"
    assert told[1] == "validation     step 40: loss not finite, top-1 62.5%, top-5 100.0%, top-1 of the average 65.0%"


def test_probes_made_while_training_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        {"step": 20, "loss": 0.25, "probe_linear": 0.5, "probe_knn": 0.25, "attended_tokens": 17.25},
        {"step": 40, "loss": 0.125},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert run_script(monkeypatch, "report.py", tmp_path) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[1] == "probes         step 20: 17.2 tokens attended to, linear probe 50.0%, k-NN probe 25.0%"


def test_a_report_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {"step": 20, "loss": 1.5, "val_loss": 1.25, "val_top1": 0.5},
        {"step": 40, "loss": 1.0, "probe_linear": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert run_script(monkeypatch, "report.py", tmp_path, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "run": str(tmp_path),
        "training": {"step": 40, "loss": 1.0},
        "validation": {"step": 20, "val_loss": 1.25, "val_top1": 0.5},
        "probes": {"step": 40, "probe_linear": 0.5},
        "baselines": None,
    }
