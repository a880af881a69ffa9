"""Probes while a run trains: equal to scripts/probe.py, without a trace in the run, on any ranks and ZeRO stage."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from labelled import CLASSES, labelled_shards
from launching import assert_same_weights, free_port, launch, losses, metrics, pretrain
from ranks import Ranks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.cluster.world import World, join
from pipeline.config import load_recipe
from pipeline.data.loader import Loader
from pipeline.probe.effective_rank import effective_rank
from pipeline.probe.kept_crops import KeptCrops
from pipeline.probe.run_probe import RunProbe, collapse
from shards.manifest import Manifest

PROBED = ("run.probe_every=2", "run.max_steps=4")
NUMBERS = ("probe_linear", "probe_knn", "attended_tokens", "effective_rank")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Images in colours and much noise: 3 x 40 to train on, and 2 x 10 to validate."""
    parts = {"train": dict.fromkeys(CLASSES, 40), "validation": {"green": 10, "red": 10}}
    return labelled_shards(tmp_path_factory.mktemp("labelled"), parts)


@pytest.fixture(scope="module")
def run(labelled: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    pretrain(labelled["train"], run, f"data.validation={labelled['validation']}", *PROBED)
    return run


@pytest.fixture
def world() -> World:
    return join()


def probes(run: Path) -> dict[int, dict[str, float]]:
    """The numbers of all probes of a run by step, without the time that they took."""
    return {line["step"]: {name: line[name] for name in NUMBERS} for line in metrics(run) if "probe_linear" in line}


def test_a_probed_run_is_the_same_run(run: Path, labelled: dict[str, Path], tmp_path: Path) -> None:
    pretrain(labelled["train"], tmp_path / "plain", f"data.validation={labelled['validation']}", "run.max_steps=4")
    assert losses(tmp_path / "plain") == losses(run)
    assert_same_weights(tmp_path / "plain", run)
    assert list(probes(run)) == [2, 4] and not probes(tmp_path / "plain")


def test_a_probe_finds_what_the_script_finds(run: Path, labelled: dict[str, Path], tmp_path: Path) -> None:
    arguments = [str(run), f"data.validation={labelled['validation']}", "--out", str(tmp_path / "out")]
    started = Ranks(1, arguments, tmp_path / "said", free_port(), "scripts/probe.py")
    assert started.wait(240) == [0], started.said()
    report = json.loads((tmp_path / "out" / "step-00000004.json").read_text())
    (layer,) = report["layers"].values()
    found = probes(run)[4]
    assert found["probe_linear"] == layer["linear"]["top1"] and found["probe_knn"] == layer["neighbours"][0]["top1"]
    assert found["attended_tokens"] == pytest.approx(report["attended_tokens"][-1], rel=1e-5)


def test_boards_show_the_probes_beside_the_untrained_encoder(run: Path) -> None:
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    for name in NUMBERS:
        shown = {event.step: event.value for event in board.Scalars(name)}
        assert shown == {step: pytest.approx(found[name]) for step, found in probes(run).items()}
    (untrained,) = board.Scalars("baseline/probe_linear")
    assert untrained.step == 0 and 0 <= untrained.value <= 1


def test_a_resumed_run_probes_the_same(run: Path, labelled: dict[str, Path], tmp_path: Path) -> None:
    validation = f"data.validation={labelled['validation']}"
    for steps in (3, 4):
        pretrain(labelled["train"], tmp_path / "run", validation, "run.probe_every=2", f"run.max_steps={steps}")
    found = probes(tmp_path / "run")
    assert {step: found[step] for step in (2, 4)} == probes(run)
    assert losses(tmp_path / "run") == losses(run)
