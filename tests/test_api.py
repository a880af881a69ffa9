"""The import surface: batches of a run, weights with their head, and the notebook, which is executed as it is."""

import ast
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import CHECKOUT, losses, pretrain, small_recipe, trace
from mixing import mixed
from PIL import Image
from resuming import OLD
from scripting import run_script

import pipeline.api as api
from pipeline.build import build_model
from pipeline.settings import ConfigError
from shards.files import ShardError


def test_all_names_are_there_and_nothing_else_is_promised() -> None:
    assert sorted(api.__all__) == api.__all__ and all(hasattr(api, name) for name in api.__all__)
    page = (CHECKOUT / "docs" / "reference" / "api.md").read_text()
    assert [name for name in api.__all__ if f"`{name}`" not in page and f"`{name}(" not in page] == []


def first_loss(recipe: api.Recipe, example: api.Example) -> float:
    """Return the loss of the seed's weights, which a run's first step has."""
    torch.manual_seed(recipe.run.seed)
    model = build_model(recipe)
    with torch.no_grad():
        return torch.nn.functional.mse_loss(model(example.inputs, example.mask), example.targets).item()


def test_batches_are_those_of_a_run(shards: Path, tmp_path: Path) -> None:
    """Ids in their order, and the loss of the run's first step, whose weights are the seed's."""
    pretrain(shards, tmp_path / "run", "run.max_steps=3", "run.trace_samples=true", "engine.precision=fp32")
    recipe = small_recipe(shards, tmp_path / "run")
    found = list(api.training_batches(recipe, steps=3))
    assert {step: batch.request.ids.tolist() for step, (batch, _) in enumerate(found)} == trace(tmp_path / "run")
    batch, example = found[0]
    assert first_loss(recipe, example) == pytest.approx(losses(tmp_path / "run")[1], rel=1e-5)
    assert torch.equal(example.inputs, api.normalise(batch.inputs, torch.float32))
    assert torch.equal(example.targets, api.hog_target(batch.inputs).flatten(0, 1)[example.mask.indices])


def test_batches_are_augmented_as_those_of_a_run(shards: Path, tmp_path: Path) -> None:
    settings = ("augment.brightness=0.4", "augment.grey=0.5", "mask.repeats=2", "engine.precision=fp32")
    pretrain(shards, tmp_path / "run", *settings, "run.max_steps=1")
    recipe = small_recipe(shards, tmp_path / "run", *settings)
    ((_, example),) = api.training_batches(recipe, steps=1)
    assert first_loss(recipe, example) == pytest.approx(losses(tmp_path / "run")[1], rel=1e-5)


def test_batches_of_images_and_videos(shards: Path, video_shards: Path, tmp_path: Path) -> None:
    settings = (mixed({"clips": video_shards, "photos": shards}), "data.image_size=64", "data.frames=4")
    pretrain("null", tmp_path / "run", *settings, "run.max_steps=3", "engine.precision=fp32")
    recipe = small_recipe("null", tmp_path / "run", *settings)
    found = list(api.training_batches(recipe, steps=3))
    assert {batch.inputs.shape[2] for batch, _ in found} == {1, 4}
    _, example = found[0]
    assert first_loss(recipe, example) == pytest.approx(losses(tmp_path / "run")[1], rel=1e-5)


@pytest.mark.parametrize("repeats", [("mask.repeats=3",), ("mask.repeats=4", "data.repeats=3"), ("mask.repeats=20",)])
def test_a_batch_that_a_run_refuses_is_refused(repeats: tuple[str, ...], shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a multiple of"):
        next(api.training_batches(small_recipe(shards, tmp_path, *repeats)))


def test_any_batch_is_had_at_once(shards: Path, tmp_path: Path) -> None:
    recipe = small_recipe(shards, tmp_path, "mask.repeats=2")
    endless = api.training_batches(recipe)
    (*_, (third, of_third)) = islice(endless, 3)
    endless.close()  # type: ignore[attr-defined]
    ((batch, example),) = api.training_batches(recipe, steps=1, first_step=2)
    assert torch.equal(batch.inputs, third.inputs) and len(batch.inputs) == 8  # of 16 views, two masks each
    assert torch.equal(example.mask.cells, of_third.mask.cells) and len(example.mask.cells) == 16


def test_no_data_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ShardError):
        next(api.training_batches(small_recipe(tmp_path / "nothing", tmp_path)))


def test_a_model_has_its_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_script(monkeypatch, "export.py", OLD / "pretrain", tmp_path, "--format", "maskfeat") == 0
    one, other = api.load_model(str(OLD / "pretrain")), api.load_model(str(tmp_path))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    assert not one.training and one.head.weight.shape == (108, 8)
    with pytest.raises(ConfigError, match="has only an encoder"):
        api.load_model(str(OLD / "finetune"))


NOTEBOOK = CHECKOUT / "docs" / "tutorials" / "notebook.ipynb"


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Cell by cell, each in the variables of those before it. Its cells are plain Python, so IPython is not needed."""
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    variables: dict[str, Any] = {}
    shown = []
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            shown.append(run_cell("".join(cell["source"]), variables))
    assert variables["losses"][-1] < 0.6 * variables["losses"][0]
    assert variables["features"].shape == (3, 192)
    assert shown[1] == ["astronaut", "cat", "china", "coffee", "flower", "rocket"]
    crops, sheet = (picture for picture in shown if isinstance(picture, Image.Image))
    assert crops.size == (8 * 96, 96) and sheet.width == 6 * 288 + 5 * 14 + 2 * 18
    shapes = "torch.Size([16, 3, 96, 96]) torch.Size([16, 6, 6]) torch.Size([224, 108])"
    assert capsys.readouterr().out.count(shapes) == 2


def run_cell(source: str, variables: dict[str, Any]) -> Any:
    """Run a cell as a notebook does, and return the value of an expression in its last line."""
    *rest, last = ast.parse(source).body
    shows = isinstance(last, ast.Expr)
    exec(compile(ast.Module(rest if shows else [*rest, last], []), str(NOTEBOOK), "exec"), variables)
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), variables) if shows else None
