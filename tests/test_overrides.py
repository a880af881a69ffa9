"""Settings equal the typed or written text, and malformed files and values give one line at once."""

import getpass
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import RECIPES, Recipe, TrainingRecipe, load, load_recipe
from pipeline.finetune.config import FinetuneRecipe
from pipeline.settings import ConfigError

SHARDS = "data.shards=/data/train"
HOME = Path("~").expanduser()


def setting(recipe: TrainingRecipe, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(recipe, section), name)


def refusal(*overrides: str, recipe: str = "demo") -> str:
    """Return the message of a refused recipe, which is one short line, and comes at once."""
    begin = time.monotonic()
    with pytest.raises(ConfigError) as error:
        load_recipe(recipe, [SHARDS, *overrides])
    assert time.monotonic() - begin < 5  # on a busy machine; what hangs takes far longer
    message = str(error.value)
    assert message.isprintable() and len(message) < 1000
    return message


@pytest.mark.parametrize(
    "typed",
    [
        "try #1",
        "a: b",
        "2024-05-01",
        "no",
        "010",
        "1:30",
        "1e3",
        "[a]",
        "{a: b}",
        "null",
        "&a",
        "*a",
        "!x",
        "it's",
        '"',
    ],
)
@pytest.mark.parametrize("key", ["run.dir", "data.shards", "data.cache", "model.init", "model.name"])
def test_text_and_paths_are_what_was_typed(key: str, typed: str) -> None:
    if typed == "null" and key == "data.shards":  # which a mixture may stand for
        assert refusal(f"{key}={typed}").startswith("data.shards is missing")
        return
    value = setting(load_recipe("demo", [SHARDS, f"{key}={typed}"]), key)
    assert value is None if typed == "null" and key in ("data.cache", "model.init") else str(value) == typed


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("  a b ", "a b"),
        ("'try #1'", "try #1"),
        ('"a b"', "a b"),
        ("'null'", "null"),
        ("'a' 'b'", "'a' 'b'"),  # not a pair around it all
        ("null", None),
        ("", None),
        ("~/sets/a", f"{HOME}/sets/a"),
        ("~", str(HOME)),
        (f"~{getpass.getuser()}/a", f"{HOME}/a"),
        ("./~a", "./~a"),
        ("a~", "a~"),
        ("s3://bucket/~a", "s3://bucket/~a"),
    ],
)
def test_spaces_quotes_home_folders_and_nothing(typed: str, value: str | None) -> None:
    assert load_recipe("demo", [SHARDS, f"data.validation={typed}"]).data.validation == value


@pytest.mark.parametrize("key", ["run.dir", "data.shards", "data.validation", "data.cache", "model.init"])
def test_home_folders_are_meant_in_files_too(key: str, tmp_path: Path) -> None:
    section, name = key.split(".")
    settings = {"optim": {"epochs": 40, "batch_size": 8}, "data": {"shards": "x"}}
    settings[section] = settings.get(section, {}) | {name: "~/a"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    assert setting(load_recipe(str(tmp_path / "mine.yaml")), key) in (HOME / "a", f"{HOME}/a")


def test_a_path_that_a_run_wrote_down_is_text_in_every_locale(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(
        "run: {dir: é}\ndata: {shards: é}\noptim: {epochs: 31, batch_size: 1}".encode()
    )
    program = (
        f"from pipeline.config import load_recipe; print(ascii(load_recipe('{tmp_path}/recipe.yaml').data.shards))"
    )
    said = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", program],
        env=os.environ | {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        check=True,
    )
    assert said.stdout == b"'\\xe9'\n"


def test_a_teacher_may_lie_in_a_home_folder() -> None:
    overrides = ["target.kind=features", "target.teacher=~/a", "target.teacher_weights=~/b"]
    target = load_recipe("demo", [SHARDS, *overrides]).target
    assert (target.teacher, target.teacher_weights) == (f"{HOME}/a", HOME / "b")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.lanes=010", 10),
        ("data.lanes=1_000", 1000),
        ("optim.lr=1e-3", 0.001),
        ("optim.lr=2E-5", 2e-5),
        ("data.flip=no", False),
        ("data.flip=On", True),
        ("data.flip=false", False),
        ("engine.zero_stage=2", 2),
        ("data.hw_decoder_load=1", 1),
        ("data.cache_size=500GB", 500 * 10**9),
        ("optim.clip=null", None),
        ("data.crop_scale=[0.2, 0.9]", (0.2, 0.9)),
        ("data.crop_scale='[0.2, 1]'", (0.2, 1.0)),
        ("model.options={depth: 010, qkv_bias: no, mlp_ratio: 2}", {"depth": 10, "qkv_bias": False, "mlp_ratio": 2.0}),
    ],
)
def test_numbers_switches_and_lists(override: str, value: Any) -> None:
    got = setting(load_recipe("demo", [SHARDS, override]), override.split("=")[0])
    assert got == value and isinstance(got, type(value))


def test_long_text_takes_no_long_time() -> None:
    begin = time.monotonic()
    assert load_recipe("demo", [SHARDS, "data.shards=" + "x" * 10**5]).data.shards == "x" * 10**5
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.dir=", "run.dir='': a path has at least one character"),
        ("data.shards=''", "data.shards='': a path"),
        ("model.name=", "model.name='': "),
        ("optim.lr=", "optim.lr='': input should be a valid number"),
        ("run.dir=~nobody-of-this-name/x", "run.dir=~nobody-of-this-name/x: there is no such user"),
        ("run.dir=a\0b", r"run.dir=a\x00b: "),
        ("run.dir=s3://bucket/run", "run.dir=s3://bucket/run: it must be a path, not a URL"),
        ("model.init=https://bob:secret@host/w.pth", "model.init=https://***@host/w.pth: it must be a path"),
        ("target.teacher_weights=https://host/w?key=secret", "target.teacher_weights=https://host/w?key=***: it must"),
        ("run.dir=caf\udce9", r"run.dir=caf\udce9: it is not UTF-8"),
        ("optim.epochs=1:30", "optim.epochs=1:30: input should be a valid number"),
        ("data.lanes=0o10", "data.lanes=0o10: "),
        ("data.lanes=1.5", "data.lanes=1.5: "),
        ("optim.lr=1e-3 # fast", "optim.lr=1e-3 # fast: "),
        ("data.crop_scale=[0.2, 1] # small", "a comment (#) is not part of a value"),
        ("data.crop_scale=[0.2]", "data.crop_scale.1="),
        ("data.flip=maybe", "data.flip=maybe: input should be a valid boolean"),
        ("engine.precision=no", "engine.precision=no: input should be 'fp32', 'bf16' or 'fp16'"),
        ("optim.batch_size=100000000000000000000", "optim.batch_size=100000000000000000000: input should be less than"),
        ("data.image_size=1000000000", "data.image_size=1000000000: input should be less than or equal to 8192"),
        ("optim.epochs=1e300", "optim.epochs=1e300: input should be less than"),
        ("optim.epochs=1e999", "optim.epochs=1e999: input should be a finite number"),
        ("optim.epochs=nan", "optim.epochs=nan: input should be a finite number"),
        ("optim.lr=-1", "optim.lr=-1: input should be greater than"),
        ("run.probe_every=0", "run.probe_every=0: input should be greater than or equal to 1, or null for none"),
        ("run.seed=" + "9" * 5000, "run.seed=" + "9" * 100 + "...: "),
        ("data.cache_size=-5GB", "data.cache_size=-5GB: "),
        ("model.options={depth: 1, depth: 2}", "depth is set for the second time"),
        ("model.options={a: &x [1], b: *x}", "aliases are not taken"),
        ("model.options=!!python/object/apply:os.getcwd []", "tags are not taken"),
        ("model.options=" + "[" * 5000, "nested more than 20 deep"),
        ("model.options={depth: " + "{a: " * 5000, "nested more than 20 deep"),
        ("model.options=[" + "1, " * 10**6 + "]", "larger than 128 KiB"),
        ("model.name" + "e" * 10**5 + "=3", "unknown key model.name"),
        ("\x1b[2J=3", r"\x1b[2J"),
        ("shards=s3://key:secret@bucket", "'shards' is not an override: write section.key=value"),
    ],
)
def test_what_cannot_be_a_value_is_one_line(override: str, message: str) -> None:
    assert message in refusal(override)


NESTED = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (NESTED, "line 2: aliases are not taken: write out what *a0 stands for"),
        ("run: &r {dir: *r}\n", "aliases are not taken"),
        ("data: " + "[" * 5000, "nested more than 20 deep"),
        ("data: " + "{a: " * 5000, "nested more than 20 deep"),
        ("run: {dir: !!python/object/apply:os.getcwd []}", "tags are not taken: leave out tag:yaml.org,2002:python"),
        ("run: {dir: !!str 3}", "tags are not taken"),
        ("run: {seed: 1}\nrun: {seed: 2}", "line 2: run is set for the second time"),
        ("run: {seed: 1, seed: 1}", "seed is set for the second time"),
        ("run: {seed: 1}\n---\nrun: {}", "expected a single document"),
        ("? [a]\n: b", "a key is not text"),
        ("run: {dir: '\0'}", "characters that YAML does not allow"),
        ('run: {dir: "\\UFFFFFFFF"}', "characters that YAML does not allow"),
        ("# caf\xe9".encode("latin1"), "it is not text in UTF-8: byte 5 is 0xe9"),
        ("run: {}".encode("utf-16"), "it is not text in UTF-8: byte 0 is 0xff"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "it is not text in UTF-8"),
        ("# " + "x" * 10**6, "larger than 128 KiB"),
        ("{", "mine.yaml is not YAML: line 1: "),
        ("~: {seed: 1}", "unknown section ~"),
        ("run.dir: x", "write run: {dir: VALUE}, without the dot"),
        ("otpim: {epochs: 3}", "unknown section otpim: did you mean optim?"),
        ("a: {epochs: 3}", "unknown section a: there are run, data, model, optim, engine, augment, mask, target"),
        ("".join(f"k{i}: {{}}\n" for i in range(5000)), "unknown section k0"),
        ("run: {" + ", ".join(f"k{i}: 3" for i in range(5000)) + "}", "and 4997 more"),
        ("data: " + "x" * 10**5, "data is not a section of settings but xxx"),
        ("run: {dir: [a]}", "run.dir=['a']: "),
        ("run: {dir: null}", "run.dir=null: "),
    ],
)
def test_a_file_of_any_content_is_one_line_at_once(content: str | bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    assert message in refusal(recipe=str(tmp_path / "mine.yaml"))


def test_what_is_not_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "endless"):
        assert f"{name}.yaml is not YAML: it is not a file" in refusal(recipe=str(tmp_path / f"{name}.yaml"))
    assert "no recipe '/none.yaml': give one of" in refusal(recipe="/none.yaml")
    for unreadable in ("a" * 5000, "a" * 5000 + ".yaml", "a\0b", "a\0b.yaml", ""):
        refusal(recipe=unreadable)


def test_files_say_what_is_written(tmp_path: Path) -> None:
    """As YAML 1.1 takes it, these are a date, false, 8, 90 and a float without its last digit."""
    mine = tmp_path / "mine.yaml"
    for written in ("2024-05-01", "no", "010", "1:30", "1.10", "2024", "0x10", ".5", "true"):
        mine.write_text(
            f"\ufeffrun: {{dir: {written}}}  # a comment\noptim: {{epochs: 040, batch_size: 8, lr: 1e-3}}\n"
        )
        recipe = load_recipe(str(mine), [SHARDS])
        assert (str(recipe.run.dir), recipe.optim.epochs, recipe.optim.lr) == (written, 40, 0.001)


@pytest.mark.parametrize("kind", [Recipe, FinetuneRecipe])
def test_recipes_and_what_runs_wrote_are_read_as_by_yaml_itself(kind: type[TrainingRecipe], tmp_path: Path) -> None:
    odd = [
        "run.dir=2024-05-01",
        "data.shards=no",
        "data.validation=010",
        "data.cache=1e3",
        "model.init='null'",
        "data.cache_size=500GB",
        "optim.lr=1e-07",
        "model.options={drop_path_rate: 0.1, init_values: 1e-5, qkv_bias: true}",
    ]
    files = sorted(kind.folder.glob("*.yaml"))
    assert len(files) >= 4
    for file in files:
        plain = yaml.safe_load(file.read_text())
        given = {"shards": "x", "validation": "y"}
        plain["data"] = given | plain["data"]
        tokenizer = ["target.tokenizer=w"] if plain.get("target", {}).get("kind") == "tokens" else []
        if tokenizer:
            plain["target"]["tokenizer"] = "w"
        want = kind.model_validate(plain | {"run": {"dir": "z"} | plain.get("run", {})})
        overrides = ["run.dir=z", *(f"data.{key}={value}" for key, value in given.items()), *tokenizer]
        assert load(kind, str(file), overrides) == want
        recipe = load(kind, file.stem, [*odd, *tokenizer])
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
        assert load(kind, str(tmp_path / "config.yaml")) == recipe


def test_the_documentation_lists_every_option_of_the_model() -> None:
    text = (RECIPES.parents[1] / "docs" / "reference" / "settings.md").read_text()
    annotation = Recipe.model_fields["model"].annotation
    assert annotation is not None
    options = annotation.model_fields["options"].annotation.__annotations__
    table = text.partition("| option | |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) == options.keys()
