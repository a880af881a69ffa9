"""Runs by other optimizers than AdamW: resumed equals undisturbed, and stages and ranks learn the same."""

from pathlib import Path

import pytest
import torch
from launching import assert_same_weights, last_checkpoint, launch, losses, metrics, pretrain

from pipeline.checkpoints.checkpoint import CheckpointError
from pipeline.optimizers import OPTIMIZERS

RUNS = [
    ("lion", 0, "fp32"),
    ("lion", 1, "bf16"),
    ("lion", 2, "fp32"),
    ("lion", 1, "fp16"),
    ("lion", 3, "fp32"),
    ("sgdw", 1, "fp32"),
    ("sgdw", 2, "bf16"),
    ("lamb", 0, "fp32"),
    ("lamb", 0, "bf16"),
]


def settings(name: str, stage: int, precision: str = "fp32") -> list[str]:
    rate = {"lion": 5e-3, "sgdw": 10, "lamb": 0.2}[name]
    own = [f"optim.name={name}", f"optim.lr={rate}", "optim.warmup_epochs=0"]
    return [*own, f"engine.zero_stage={stage}", f"engine.precision={precision}"]


@pytest.mark.parametrize(("name", "stage", "precision"), RUNS)
def test_resumed_equals_undisturbed_bit_for_bit(
    name: str, stage: int, precision: str, shards: Path, tmp_path: Path
) -> None:
    own = settings(name, stage, precision)
    pretrain(shards, tmp_path / "whole", *own, "run.max_steps=6")
    pretrain(shards, tmp_path / "parts", *own, "run.max_steps=3")
    pretrain(shards, tmp_path / "parts", *own, "run.max_steps=6")
    whole, parts = metrics(tmp_path / "whole"), metrics(tmp_path / "parts")
    for key in ("loss", "grad_norm", "lr", "skipped_steps"):
        assert [line[key] for line in parts] == [line[key] for line in whole], key
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    kept = {key.split("/")[0] for key in last_checkpoint(tmp_path / "parts").shapes}
    assert kept == {"weight", *OPTIMIZERS[name].states}
    assert precision == "fp16" or whole[-1]["skipped_steps"] == 0
    assert precision == "fp16" or losses(tmp_path / "whole")[6] < losses(tmp_path / "whole")[1]


def test_other_stages_and_ranks_learn_the_same(shards: Path, tmp_path: Path) -> None:
    """Two ranks at ZeRO 2 resume a run of one at stage 0, and the other way round."""
    pretrain(shards, tmp_path / "whole", *settings("sgdw", 0), "run.max_steps=6")
    pretrain(shards, tmp_path / "moved", *settings("sgdw", 0), "run.max_steps=2")
    launch(shards, tmp_path / "moved", *settings("sgdw", 2), "run.max_steps=4")
    pretrain(shards, tmp_path / "moved", *settings("sgdw", 1), "run.max_steps=6")
    want, got = losses(tmp_path / "whole"), losses(tmp_path / "moved")
    assert got.keys() == want.keys()
    assert all(abs(got[step] - want[step]) < 1e-5 for step in want)


def test_a_run_keeps_its_optimizer(shards: Path, tmp_path: Path) -> None:
    pretrain(shards, tmp_path / "run", *settings("lion", 1), "run.max_steps=1")
    with pytest.raises(CheckpointError, match=r"optim\.name"):
        pretrain(shards, tmp_path / "run", *settings("sgdw", 1), "optim.lr=1e-4", "run.max_steps=2")


def test_clipping_is_that_of_adamw(shards: Path, tmp_path: Path) -> None:
    """A step of SGD is as long as its clipped gradient, whatever the gradient's own norm."""
    clipped = [*settings("sgdw", 1), "optim.clip=0.001", "optim.weight_decay=0", "run.max_steps=1"]
    pretrain(shards, tmp_path / "run", *clipped)
    (line,) = metrics(tmp_path / "run")
    assert line["grad_norm"] > 0.01
    with last_checkpoint(tmp_path / "run").tensors() as tensors:
        keys = [key for key in last_checkpoint(tmp_path / "run").shapes if key.startswith("momentum_buffer/")]
        norm = torch.cat([tensors[key].flatten() for key in keys]).norm().item()
    assert norm == pytest.approx(0.001, rel=1e-3)
