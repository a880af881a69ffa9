"""Recipes that start from others, and single options of mappings."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RECIPES, Recipe, load, load_recipe
from pipeline.finetune.config import FinetuneRecipe
from pipeline.settings import ConfigError

SHARDS = "data.shards=/data/train"


def write(folder: Path, **files: str) -> Path:
    """Write recipes by name; the folder."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def refusal(recipe: Path | str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_recipe(str(recipe), [SHARDS, *overrides])
    assert str(error.value).isprintable()
    return str(error.value)


def test_a_recipe_takes_what_it_does_not_set_from_its_base(tmp_path: Path) -> None:
    write(tmp_path, mine="base: small\noptim: {epochs: 7}\nmodel: {options: {embed_dim: 64}}\n")
    mine, small = (load_recipe(str(name), [SHARDS]) for name in (tmp_path / "mine.yaml", "small"))
    assert mine.optim.epochs == 7 and mine.optim.lr == small.optim.lr
    assert mine.model.options == {"embed_dim": 64}  # as a whole
    assert mine.model.position_init == small.model.position_init == "sincos"
    assert str(mine.run.dir) == "runs/mine"
    changed = {"run": {"dir"}, "optim": {"epochs"}, "model": {"options"}}
    assert mine.model_dump(exclude=changed) == small.model_dump(exclude=changed)


def test_a_base_is_found_beside_the_file_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    write(tmp_path / "a", family="base: b/common.yaml\noptim: {lr: 1e-3}\n")
    write(tmp_path / "a" / "b", common="base: small\noptim: {lr: 1e-4, epochs: 9}\n")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("a/family.yaml", [SHARDS, "optim.warmup_epochs=2"])
    assert (recipe.optim.lr, recipe.optim.epochs, recipe.optim.warmup_epochs) == (1e-3, 9, 2)


def test_a_base_of_fine_tuning_is_one_of_its_recipes(tmp_path: Path) -> None:
    write(tmp_path, mine="base: small\naugment: {erasing: 0.5}\n")
    mine = load(FinetuneRecipe, str(tmp_path / "mine.yaml"), [SHARDS, "data.validation=/data/val"])
    assert mine.augment.erasing == 0.5 and str(mine.run.dir) == "runs/finetune/mine"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("base: smal\n", "mine.yaml: base: no recipe 'smal': did you mean small"),
        ("base: other.yaml\n", "mine.yaml: base: no recipe 'other.yaml'"),
        ("base: mine.yaml\n", "mine.yaml: base is circular"),
        ("base: {small: 1}\n", "mine.yaml: base is the name of a recipe"),
        ("base: small\nsmall: {a: 1}\n", "mine.yaml: unknown section small"),
    ],
)
def test_a_base_that_cannot_be_is_one_line(text: str, why: str, tmp_path: Path) -> None:
    write(tmp_path, mine=text)
    assert refusal(tmp_path / "mine.yaml").startswith(f"{tmp_path}/{why}")


def test_the_record_of_a_stream_is_no_base_without_its_source(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    write(tmp_path / "run", config="base: small\ndata: {mode: stream, shards: 'pipe:touch proof'}\n")
    write(tmp_path, mine="base: run/config.yaml\n")
    with pytest.raises(ConfigError, match="is the record of a run"):
        load_recipe(str(tmp_path / "mine.yaml"), [])


@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        (["model.options.depth=8"], {"embed_dim": 192, "depth": 8, "num_heads": 3}),
        (["model.options={depth: 2}", "model.options.embed_dim=64"], {"depth": 2, "embed_dim": 64}),
        (["model.options.depth=8", "model.options={embed_dim: 64}"], {"embed_dim": 64}),
        ([" model.options.qkv_bias = no"], {"embed_dim": 192, "depth": 6, "num_heads": 3, "qkv_bias": False}),
    ],
)
def test_one_option_leaves_the_others(overrides: list[str], options: dict[str, Any]) -> None:
    assert load_recipe("small", [SHARDS, *overrides]).model.options == options


def test_one_weight_of_a_mixture() -> None:
    mixture = "data.mixture={a: {shards: /a, weight: 1}, b: {shards: /b, weight: 1}}"
    recipe = load_recipe("small", ["data.shards=null", mixture, "data.mixture.b.weight=3"])
    assert recipe.data.mixture and [one.weight for one in recipe.data.mixture.values()] == [1, 3]


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("model.options.dpth=8", "model.options.dpth=8: not an option that works here, which are "),
        ("model.option.depth=8", "unknown key model.option.depth: did you mean model.options"),
        ("optim.lr.depth=8", "unknown key optim.lr.depth: did you mean optim.lr"),
        ("model.options.=8", "unknown key model.options."),
        ("model.options.depth.more=8", "model.options.depth.more is not an option: 6 has none"),
        ("model.options.depth={", "model.options.depth={ is not a YAML value: "),
        ("model.options.depth=x", "model.options.depth=x: "),
    ],
)
def test_one_option_that_cannot_be_is_one_line(override: str, why: str) -> None:
    assert refusal("small", override).startswith(why)


def test_every_recipe_says_what_it_is_about() -> None:
    for kind in (Recipe, FinetuneRecipe):
        for file in kind.folder.glob("*.yaml"):
            assert file.read_text().startswith("# "), file.relative_to(RECIPES)
