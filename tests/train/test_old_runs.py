"""Files of version 0.1.0 stay readable: tests/old_runs has a data set, and runs stopped after 3 of their 8 steps."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from launching import last_checkpoint, metrics
from resuming import OLD, RUNS, resume
from scripting import run_script

from pipeline.checkpoints.checkpoint import FILES, STATE, CheckpointError, seal
from pipeline.config import Recipe, TrainingRecipe, load_recipe
from pipeline.finetune.config import FinetuneRecipe
from pipeline.recipe_files import read_settings
from pipeline.record import kind_of
from pipeline.train.resume import defaults, identity, may_change
from shards.verify import verify


def copy_of(run: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD / run, tmp_path / run))


def forget(run: Path, *keys: str) -> None:
    """Take settings out of what a run's checkpoint says of itself, as if it had been saved before they existed."""
    (folder,) = (run / "checkpoints").iterdir()
    state, seals = json.loads((folder / STATE).read_text()), json.loads((folder / FILES).read_text())
    for key in keys:
        del state["identity"][key]
    (folder / STATE).write_text(json.dumps(state))
    (folder / FILES).write_text(json.dumps(seals | {STATE: seal(folder / STATE)}))


@pytest.mark.parametrize("run", RUNS)
def test_a_run_of_an_earlier_version_resumes_as_if_undisturbed(run: str, tmp_path: Path) -> None:
    resume(copy_of(run, tmp_path))
    undisturbed = [json.loads(line) for line in (OLD / f"{run}.jsonl").read_text().splitlines()]
    resumed = metrics(tmp_path / run)
    assert [line["step"] for line in resumed] == [1, 2, 3, 4, 5, 6, 7, 8]
    for key in ("loss", "grad_norm", "lr"):  # equal but for other processors and versions of torch
        assert [line[key] for line in resumed] == pytest.approx([line[key] for line in undisturbed], rel=1e-4), key


@pytest.mark.parametrize(
    ("run", "key", "another"),
    [
        ("pretrain", "mask.ratio", "0.5"),
        ("pretrain", "data.crop_ratio", "[0.5, 2]"),
        ("pretrain", "optim.betas", "[0.9, 0.95]"),
        ("finetune", "augment.smoothing", "0.2"),
    ],
)
def test_a_setting_that_a_checkpoint_does_not_know_stands_for_its_default(
    run: str, key: str, another: str, tmp_path: Path
) -> None:
    folder = copy_of(run, tmp_path)
    forget(folder, key)
    with pytest.raises(CheckpointError, match=rf"belongs to another run \({key} was .*, now .*\): set these back"):
        resume(folder, f"{key}={another}")
    resume(folder)


def test_every_setting_that_a_run_is_bound_to_has_a_default_or_is_required() -> None:
    """Every setting that is compared with a checkpoint is among the defaults, with the same name and form."""
    recipe = load_recipe("small", ["data.shards=set"])
    bound, known = identity(recipe, {}), defaults(recipe)
    required = {"optim.epochs", "optim.batch_size"}
    assert {key for key in bound if "." in key} - known.keys() == required
    assert not may_change(Recipe) & (bound.keys() - {"run.seed"})
    assert bound["data.crop_ratio"] == known["data.crop_ratio"]


FREE_SECTIONS = {"run", "engine", "target"}
FREE_DATA = {"shards", "validation", "validation_samples", "cache", "cache_size", "deadline", "bad_in_a_row"}
FREE_DATA |= {"bad_share", "read_threads", "requests", "decode_threads", "mixture", "validation_images"}


@pytest.mark.parametrize("kind", [Recipe, FinetuneRecipe])
def test_what_a_run_may_change_is_what_runs_of_earlier_versions_could(kind: type[TrainingRecipe]) -> None:
    """The marks at the fields give the set that this test has, though subclasses declare fields anew."""
    settings = {section: field.annotation.model_fields for section, field in kind.model_fields.items()}
    free = {f"data.{key}" for key in FREE_DATA}
    free |= {f"{section}.{key}" for section in FREE_SECTIONS & settings.keys() for key in settings[section]}
    assert may_change(kind) == free


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"run": {"kind": "finetune"}}, "finetune"),
        ({"run": {"kind": "pretrain"}, "augment": {}}, "pretrain"),
        ({"run": {"dir": "a"}, "augment": {}}, "finetune"),
        ({"run": {"dir": "a"}}, "pretrain"),
        ({"run": None, "augment": None}, "finetune"),
        ({"run": {"kind": [1]}}, "pretrain"),
        ({}, "pretrain"),
    ],
)
def test_the_kind_of_a_run_is_what_its_recipe_says_or_follows_from_an_older_one(
    settings: dict[str, Any], kind: str
) -> None:
    assert kind_of(settings) == kind


@pytest.mark.parametrize("run", RUNS)
def test_a_run_that_resumes_writes_its_kind_down(run: str, tmp_path: Path) -> None:
    folder = copy_of(run, tmp_path)
    assert "kind" not in last_checkpoint(folder).facts.recipe["run"]
    resume(folder)
    assert last_checkpoint(folder).facts.recipe["run"]["kind"] == run
    assert read_settings(folder / "config.yaml")["run"]["kind"] == run


def test_a_data_set_of_an_earlier_version_is_whole() -> None:
    assert verify(OLD / "set") == []


@pytest.mark.parametrize(("run", "classes"), [("pretrain", 0), ("finetune", 2)])
def test_a_run_of_an_earlier_version_is_exported(
    run: str, classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_script(monkeypatch, "export.py", OLD / run, tmp_path / "out") == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_classes"] == classes
    assert config.get("label_names", []) == ["one", "two"][:classes]
