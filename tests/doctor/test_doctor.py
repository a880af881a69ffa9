"""scripts/doctor.py for a run of fine-tuning; on nodes that differ, and for pre-training, see test_preflight.py."""

import json
from math import isclose
from pathlib import Path

import torch
from labelled import labelled_shards
from launching import FINETUNE, SMALL, finetune_recipe, free_port
from ranks import Ranks

from pipeline.finetune.build import build_classifier


def doctor(said: Path, recipe: str, *arguments: object) -> tuple[int | None, str]:
    """Run it alone: its exit status, and what it said."""
    settings = [recipe, "--samples=64", *SMALL, *FINETUNE, *map(str, arguments)]
    alone = Ranks(1, settings, said, free_port(), "scripts/doctor.py")
    return alone.wait(120)[0], alone.said()


def test_examines_a_finetuning_run(tmp_path: Path) -> None:
    sets = labelled_shards(
        tmp_path, {"train": {"red": 40, "blue": 40}, "validation": {"red": 3}, "other": {"green": 3}}
    )
    run, told = tmp_path / "run", tmp_path / "findings.json"
    data = [f"data.shards={sets['train']}", f"run.dir={run}"]
    more = ["--finetune", *data, f"data.validation={sets['validation']}", "optim.average=0.9", "--json", told]
    status, said = doctor(tmp_path / "first", "small", *more)
    assert status == 0, said
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
    record = "tests/old_runs/finetune/config.yaml"
    status, said = doctor(tmp_path / "second", record, *data, f"data.validation={sets['other']}")
    assert status == 2 and "its class 'green' is not among those of" in said, said
