"""Recipes: an error is one line that names the key."""

import re
from pathlib import Path

import pytest
import yaml

from model.size import ImageSize
from pipeline.config import RECIPES, Recipe, TrainingRecipe, load, load_recipe
from pipeline.finetune.config import FinetuneRecipe
from pipeline.settings import ConfigError
from pipeline.train.resume import identity

SHARDS = "data.shards=/data/train"


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_is_valid(recipe: str) -> None:
    given = ["target.tokenizer=words"] if recipe.endswith("_tokens") else []
    assert load_recipe(recipe, [SHARDS, *given]).run.dir == Path("runs") / recipe


def test_published_hyperparameters() -> None:
    """Epochs, and the learning rate that linear scaling gives, from the paper's and mmselfsup's published recipes."""
    for name, epochs, model in (
        ("vit_base_300e", 300, "vit_base_patch16_224"),
        ("vit_base_1600e", 1600, "vit_base_patch16_224"),
        ("vit_large_1600e", 1600, "vit_large_patch16_224"),
    ):
        recipe = load_recipe(name, [SHARDS])
        optim = recipe.optim
        assert (recipe.model.name, optim.epochs, optim.batch_size) == (model, epochs, 2048)
        assert optim.lr * optim.batch_size / 256 == pytest.approx(1.6e-3)
        assert (optim.warmup_epochs, optim.warmup_lr, optim.min_lr) == (30, 1e-6, 1e-6)
        assert (optim.betas, optim.weight_decay, optim.clip) == ((0.9, 0.999), 0.05, 0.02)
        assert (recipe.data.crop_scale, recipe.mask.ratio) == ((0.5, 1.0), 0.4)


def test_overrides_win_and_the_yaml_comes_back_the_same(tmp_path: Path) -> None:
    recipe = load_recipe("demo", [SHARDS, "optim.lr=1e-3", "optim.lr=2e-3", "data.crop_scale=[0.2, 0.9]", "run.dir=/r"])
    assert (recipe.optim.lr, recipe.data.crop_scale, recipe.run.dir) == (2e-3, (0.2, 0.9), Path("/r"))
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe


@pytest.mark.parametrize(
    ("given", "sides", "written"),
    [("96", 96, 96), ("[96, 96]", 96, 96), ("[192,320]", (192, 320), [192, 320]), ("'[64, 96]'", (64, 96), [64, 96])],
)
def test_an_image_size_is_a_side_or_height_and_width(
    tmp_path: Path, given: str, sides: int | tuple[int, int], written: int | list[int]
) -> None:
    recipe = load_recipe("demo", [SHARDS, f"data.image_size={given}"])
    assert (recipe.data.image_size, recipe.data.size) == (sides, ImageSize.of(sides))
    for values in (recipe.plain(), recipe.model_dump(mode="json"), identity(recipe, {})):
        assert values.get("data.image_size", values.get("data", {}).get("image_size")) == written
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe.plain()))
    assert load_recipe(str(tmp_path / "again.yaml"), [SHARDS]) == recipe


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "data.shards is missing"),
        ([SHARDS, "optim.epoch=3"], "unknown key optim.epoch: did you mean optim.epochs"),
        ([SHARDS, "otpim.epochs=3"], "did you mean optim.epochs"),
        ([SHARDS, "optim.epochs=many"], "optim.epochs=many"),
        ([SHARDS, "engine.zero_stage=4"], "engine.zero_stage=4"),
        ([SHARDS, "engine.zero_stage=3", "engine.compile=all"], "engine.compile=all fails under engine.zero_stage=3"),
        ([SHARDS, "engine.precision=fp8"], "engine.precision=fp8: input should be 'fp32', 'bf16' or 'fp16'"),
        ([SHARDS, "optim.warmup_epochs=12"], "must be less than optim.epochs"),
        ([SHARDS, "data.crop_scale=[0.9, 0.5]"], "is reversed"),
        ([SHARDS, "data.crop_scale=[0.5, 1.5]"], "more than the whole image"),
        ([SHARDS, "data.image_size=[64]"], "]: it is one number, the side of a square, or [height, width]"),
        ([SHARDS, "data.image_size=[64, 0]"], "data.image_size=['64', '0']: input should be greater than 0"),
        ([SHARDS, "data.image_size=[64, 9.5]"], "data.image_size=['64', '9.5']: input should be a valid integer"),
        ([SHARDS, "data.image_size=small"], "data.image_size=small: input should be a valid integer"),
        ([SHARDS, "mask.ratio=1"], "mask.ratio=1"),
        ([SHARDS, "epochs=3"], "is not an override"),
        ([SHARDS, "optim.lr"], "is not an override"),
        ([SHARDS, "optim.lr=[1"], "optim.lr=[1: input should be a valid number"),
        ([SHARDS, "data.crop_scale=[1"], "data.crop_scale=[1 is not a YAML value: line 1"),
        ([SHARDS, "target.kind=features"], "target.kind=features needs target.teacher: set it"),
        ([SHARDS, "data.flip=true", "data.mode=stream"], "set data.stream_samples"),
        (
            [SHARDS, "data.crop_ratio=[2, 1]", "optim.warmup_epochs=12"],
            "is reversed; optim.warmup_epochs=12 must be less than optim.epochs=10",
        ),
    ],
)
def test_mistakes_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_recipe("demo", overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_recipe_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'vit_huge'.*demo, .*small, .*vit_base_1600e"):
        load_recipe("vit_huge")


@pytest.mark.parametrize(
    ("text", "message"), [("data: 3", "data is not a section"), ("- 1", "has no settings"), ("{", "is not YAML")]
)
def test_files_that_are_no_recipes(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_recipe(str(tmp_path / "mine.yaml"), [SHARDS])


def test_a_section_that_is_left_out_is_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("optim: {epochs: 40, batch_size: 8}\n")
    mine = str(tmp_path / "mine.yaml")
    with pytest.raises(
        ConfigError, match=r"^data\.shards is missing: set it in the recipe or give data\.shards=VALUE$"
    ):
        load_recipe(mine)
    with pytest.raises(ConfigError, match=r"^data\.shards is missing: .*; data\.validation is missing"):
        load(FinetuneRecipe, mine)
    assert load_recipe(mine, [SHARDS]).mask.ratio == 0.4


@pytest.mark.parametrize(
    ("kind", "recipe", "folder"),
    [
        (Recipe, "small", "runs/small"),
        (Recipe, "MINE", "runs/mine"),
        (FinetuneRecipe, "small", "runs/finetune/small"),
        (FinetuneRecipe, "pipeline/recipes/finetune/small.yaml", "runs/finetune/small"),
        (FinetuneRecipe, "MINE", "runs/finetune/mine"),
    ],
)
def test_the_folder_of_a_run_follows_from_its_recipe(
    kind: type[TrainingRecipe], recipe: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("optim: {epochs: 40, batch_size: 8}\n")
    monkeypatch.chdir(RECIPES.parents[1])
    path = recipe.replace("MINE", str(tmp_path / "mine.yaml"))
    assert load(kind, path, [SHARDS, "data.validation=val"]).run.dir == Path(folder)


def test_empty_sections_are_defaults(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("run:\noptim: {epochs: 40, batch_size: 8}\n")
    assert load_recipe(str(tmp_path / "mine.yaml"), [SHARDS]).run.seed == 0


def test_an_unknown_key_in_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("optim: {epochs: 1, batch_size: 8, warmup_epochs: 0, weight_dacay: 0.1}\n")
    with pytest.raises(ConfigError, match=r"optim\.weight_dacay: did you mean optim\.weight_decay"):
        load_recipe(str(tmp_path / "mine.yaml"), [SHARDS])


@pytest.mark.parametrize(
    ("override", "ranks", "expected"),
    [
        ("engine.micro_batch=8", 2, 8),
        ("engine.micro_batch=null", 4, 16),
        ("engine.micro_batch=64", 1, 64),
        ("engine.micro_batch=64", 4, 16),  # more than its share
        ("engine.micro_batch=5", 2, 4),  # the most that divides 32
    ],
)
def test_micro_batches_divide_the_batch(override: str, ranks: int, expected: int) -> None:
    assert load_recipe("demo", [SHARDS, override]).micro_batch(ranks) == expected


def test_uneven_batches_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim\.batch_size=64"):
        load_recipe("demo", [SHARDS]).micro_batch(3)


def test_the_documentation_lists_recipes_as_they_are() -> None:
    text = (RECIPES.parents[1] / "docs" / "reference" / "recipes.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .*? \| (\d+) \| (\d+) \| (\S+) \|", text, re.MULTILINE)
    assert len(rows) == 9
    for name, epochs, batch, rate in rows:
        optim = load_recipe(name, [SHARDS]).optim
        peak = optim.lr * optim.batch_size / 256
        assert (optim.epochs, optim.batch_size, peak) == (float(epochs), int(batch), pytest.approx(float(rate))), name


def test_the_local_decoder_takes_the_target_of_its_scales_only() -> None:
    """Also where the width of another target could be divided among its cells, as that of this teacher (22 x 64)."""
    teacher = ("target.kind=features", "target.teacher=vit_giant_patch14_clip_224")
    with pytest.raises(ConfigError, match=r"^model\.decoder=local predicts patches at four scales: set target\.kind="):
        load_recipe("small_visible", ["data.shards=unread", "model.decoder=local", *teacher])
