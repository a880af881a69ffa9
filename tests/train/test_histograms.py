"""Histograms while training: of the weights and moments that the checkpoint has, without changing the run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from launching import assert_same_weights, last_checkpoint, launch, losses, pretrain
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.report.histogram import BINS, histogram_of

SETTINGS = ("run.max_steps=2", "optim.warmup_epochs=0")


@pytest.mark.parametrize(
    ("stage", "ranks", "precision"), [(0, 1, "bf16"), (1, 2, "fp32"), (2, 2, "bf16"), (3, 2, "fp32")]
)
def test_histograms_are_those_of_the_checkpoint_and_change_nothing(
    stage: int, ranks: int, precision: str, shards: Path, tmp_path: Path
) -> None:
    without, run = tmp_path / "without", tmp_path / "with"
    own = (*SETTINGS, f"engine.zero_stage={stage}", f"engine.precision={precision}")
    for folder, asked in ((without, ()), (run, ("run.histogram_every=2",))):
        if ranks == 1:
            pretrain(shards, folder, *own, *asked)
        else:
            launch(shards, folder, *own, *asked, ranks=ranks)
    assert losses(run) == losses(without)
    assert_same_weights(run, without)
    board = EventAccumulator(str(run / "tensorboard"), {"histograms": 0}).Reload()
    tags = board.Tags()["histograms"]
    saved = last_checkpoint(run)
    names = [name.removeprefix("weight/") for name in saved.shapes if name.startswith("weight/")]
    with saved.tensors() as tensors:
        assert sorted(tags) == sorted(f"{kind}/{name}" for name in names for kind in ("weights", "mean_gradients"))
        for name in names:
            for kind, part in (("weights", "weight"), ("mean_gradients", "exp_avg")):
                (event,) = board.Histograms(f"{kind}/{name}")
                shown, tensor = event.histogram_value, tensors[f"{part}/{name}"]
                assert (event.step, shown.num) == (2, tensor.numel())
                assert shown.sum == pytest.approx(tensor.double().sum().item())
                assert shown.sum_squares == pytest.approx(tensor.double().square().sum().item())
    assert not EventAccumulator(str(without / "tensorboard")).Reload().Tags()["histograms"]


def test_a_histogram_counts_finite_numbers() -> None:
    values = torch.tensor([0.0, 1.0, 1.0, 2.0, 64.0, torch.nan, torch.inf])
    found = histogram_of(values)
    assert found is not None
    assert (found.sum, found.squares) == (68, 4102)
    assert found.edges.tolist() == list(range(65))
    assert {place: int(count) for place, count in enumerate(found.counts) if count} == {0: 1, 1: 2, 2: 1, BINS - 1: 1}
    same = histogram_of(torch.full((3,), 5.0))
    assert same is not None and (same.edges[0], same.edges[-1], same.counts.sum()) == (4.5, 5.5, 3)
    assert histogram_of(torch.tensor([torch.nan])) is None
    assert np.all(np.diff(same.edges) > 0)
