"""Runs of two real processes on a CPU: stages agree, killed equals undisturbed, mistakes are one line."""

from pathlib import Path

import numpy as np
import pytest
from launching import launch, launch_and_kill, losses, metrics, pretrain, trace

from pipeline.data.plan import Plan
from shards.manifest import Manifest


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Ten steps in fp32 on two ranks at every ZeRO stage."""
    runs = {stage: tmp_path_factory.mktemp("launched") / f"stage{stage}" for stage in (0, 1, 2, 3)}
    for stage, run in runs.items():
        launch(shards, run, f"engine.zero_stage={stage}", "run.max_steps=10", "run.trace_samples=true")
    return runs


def test_zero_stages_agree_on_two_ranks(undisturbed: dict[int, Path]) -> None:
    reference = np.array(list(losses(undisturbed[1]).values()))
    assert reference[0] - reference[-1] > 0.005
    for stage, run in undisturbed.items():
        assert sorted(losses(run)) == list(range(1, 11))
        np.testing.assert_allclose(list(losses(run).values()), reference, atol=1e-5, err_msg=f"stage {stage}")


def test_two_ranks_equal_one(undisturbed: dict[int, Path], shards: Path, tmp_path: Path) -> None:
    """The same global batches, so the same losses within the rounding of another order of summation."""
    pretrain(shards, tmp_path / "one", "run.max_steps=10", "run.trace_samples=true")
    parts = [trace(undisturbed[1], rank) for rank in (0, 1)]
    whole = trace(tmp_path / "one")
    plan = Plan(Manifest.load(shards).counts, 0, lanes=4)
    for step in range(10):
        assert parts[0][step] + parts[1][step] == whole[step] == plan.batch(step, 16).tolist()
    np.testing.assert_allclose(
        list(losses(undisturbed[1]).values()), list(losses(tmp_path / "one").values()), atol=1e-6
    )


@pytest.mark.parametrize("stage", [1, 3])
def test_interrupted_equals_undisturbed(undisturbed: dict[int, Path], shards: Path, tmp_path: Path, stage: int) -> None:
    """Killed with SIGKILL after its checkpoint of step 4, all processes at once, and started again."""
    run = tmp_path / "run"
    settings = [f"engine.zero_stage={stage}", "run.max_steps=10", "run.trace_samples=true", "run.save_every=4"]
    launch_and_kill(shards, run, *settings, when=run / "checkpoints" / "step-00000004")
    launch(shards, run, *settings)
    expected, resumed = metrics(undisturbed[stage]), metrics(run)
    for key in ("step", "loss", "grad_norm", "lr"):
        assert [line[key] for line in resumed] == [line[key] for line in expected], key
    for rank in (0, 1):
        assert trace(run, rank) == trace(undisturbed[stage], rank)


@pytest.mark.parametrize(("saved", "resumed"), [((1, 2), (3, 1)), ((3, 2), (0, 1))])
def test_a_checkpoint_resumes_at_another_stage_and_world_size(
    undisturbed: dict[int, Path], shards: Path, tmp_path: Path, saved: tuple[int, int], resumed: tuple[int, int]
) -> None:
    run = tmp_path / "run"
    launch(shards, run, f"engine.zero_stage={saved[0]}", "run.max_steps=5", ranks=saved[1])
    pretrain(shards, run, f"engine.zero_stage={resumed[0]}", "run.max_steps=10")  # one rank, in this process
    np.testing.assert_allclose(list(losses(run).values()), list(losses(undisturbed[1]).values()), atol=1e-5, rtol=0)


def test_mistakes_end_every_process_with_one_line(shards: Path, tmp_path: Path) -> None:
    said = launch(shards, tmp_path / "run", "optim.epoch=3", expect=2)
    assert "error: unknown key optim.epoch: did you mean optim.epochs" in said
    assert said.count("error: ") == 1
    said = launch(tmp_path / "nowhere", tmp_path / "run", expect=1)
    assert f"error: {tmp_path / 'nowhere'}: no such folder" in said
    assert said.count("error: ") == 1
    assert "Traceback" not in said
