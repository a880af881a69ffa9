"""The lines of a run at its start: hints about its settings, and baselines that are measured once."""

import json
from pathlib import Path

import pytest
from launching import pretrain, small_recipe

from pipeline.train.hints import hints


@pytest.mark.parametrize(
    ("settings", "end", "validates", "found"),
    [
        (["optim.warmup_epochs=2", "run.eval_every=5"], 21, True, []),
        (["optim.warmup_epochs=2", "run.eval_every=5"], 20, True, ["optim.warmup_epochs=2 are 20 steps"]),
        (["optim.warmup_epochs=0", "run.eval_every=5"], 5, True, ["run.eval_every=5, but the run ends at step 5"]),
        (["optim.warmup_epochs=0", "run.eval_every=5"], 5, False, []),
        (["optim.warmup_epochs=0", "run.histogram_every=1"], 5, False, []),
        (
            ["optim.warmup_epochs=0", "run.histogram_every=1", "run.boards=[mlflow]"],
            5,
            False,
            ["run.histogram_every has no effect: "],
        ),
    ],
)
def test_settings_that_do_not_suit_the_steps(
    settings: list[str], end: int, validates: bool, found: list[str], tmp_path: Path
) -> None:
    recipe = small_recipe("none", tmp_path, *settings)
    said = hints(recipe.run, recipe.optim, 10.0, end, validates)
    assert len(said) == len(found)
    assert all(line.startswith(start) for line, start in zip(said, found, strict=True))


def test_baselines_are_measured_once(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And those of earlier versions, which name the limit of samples and not their number, are still known."""
    settings = (f"data.validation={shards}", "data.validation_samples=1000")
    said = []
    for steps in (1, 2, 3):
        pretrain(shards, tmp_path, *settings, f"run.max_steps={steps}")
        said.append(capsys.readouterr().out)
        path = tmp_path / "baselines.json"
        known = json.loads(path.read_text())
        assert known["of"]["samples"] == {1: 90, 2: 90, 3: 1000}[steps]
        if steps == 2:
            known["of"]["samples"] = 1000
            path.write_text(json.dumps(known))
    assert ["measuring the validation loss" in text for text in said] == [True, False, False]
    assert all("validation loss: zero" in text for text in said)
    assert "note: run.eval_every=1000, but the run ends at step 1:" in said[0]
