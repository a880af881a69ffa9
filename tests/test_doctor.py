"""scripts/doctor.py for a run of fine-tuning; on nodes that differ, and for pre-training, see test_preflight.py."""

import json
import os
import subprocess
import sys
from math import isclose
from pathlib import Path

import torch
from labelled import labelled_shards
from launching import CHECKOUT, FINETUNE, SMALL, finetune_recipe

from pipeline.finetune.build import build_classifier


def doctor(recipe: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run it alone."""
    command = [sys.executable, "scripts/doctor.py", recipe, "--samples=64", *SMALL, *FINETUNE]
    joined = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # as this process may have, by itself
    environment = {name: value for name, value in os.environ.items() if name not in joined}
    return subprocess.run(
        [*command, *map(str, arguments)], cwd=CHECKOUT, env=environment, capture_output=True, text=True
    )


def test_examines_a_finetuning_run(tmp_path: Path) -> None:
    sets = labelled_shards(
        tmp_path, {"train": {"red": 40, "blue": 40}, "validation": {"red": 3}, "other": {"green": 3}}
    )
    run, told = tmp_path / "run", tmp_path / "findings.json"
    data = [f"data.shards={sets['train']}", f"run.dir={run}"]
    ended = doctor(
        "small", "--finetune", *data, f"data.validation={sets['validation']}", "optim.average=0.9", "--json", told
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    findings = {finding["check"]: finding for finding in json.loads(told.read_text())}
    model = build_classifier(finetune_recipe("none", "none", run), 2)
    size = 4 * 4 * sum(parameter.numel() for parameter in model.parameters())  # fp32: master, moments, average
    (room,) = findings["room for checkpoints"]["results"].values()
    free, _, _, _, _, checkpoints = room.split()[:6]
    assert isclose(float(free.replace(",", "")) * 1e9 / int(checkpoints.replace(",", "")), size, rel_tol=0.01), room
    assert findings["decoding"]["verdict"] != "problem"
    if torch.cuda.is_available():
        assert "images" in next(iter(findings["decoding on GPUs"]["results"].values()))
    else:
        assert findings["decoding on GPUs"]["results"].popitem()[1] == "no GPU"

    # The record of a run says of which kind it is
    refused = doctor("tests/old_runs/finetune/config.yaml", *data, f"data.validation={sets['other']}")
    assert refused.returncode == 2 and "its class 'green' is not among those of" in refused.stderr, refused.stderr
