"""The Python scripts when they are called wrongly, and their help."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from scripting import CHECKOUT, run_script

from pipeline.config import Recipe, TrainingRecipe
from pipeline.console.main import main as console
from pipeline.finetune.config import FinetuneRecipe

NAMES = ("report", "convert", "export", "doctor", "estimate", "probe", "pretrain", "finetune", "validate")


@pytest.mark.parametrize("name", NAMES)
def test_a_mistake_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, why in (((), "the following arguments are required: "), (("a", "b", "--nonsense"), "unrecognized")):
        with monkeypatch.context() as patched:
            patched.setattr("os._exit", lambda status: pytest.fail(f"it went on, to status {status}"))
            assert run_script(patched, f"{name}.py", *arguments) == 2
        said, errors = capsys.readouterr()
        assert errors.startswith(f"{name}.py: error: {why}") and errors.count("\n") == 1 and not said
        assert "section.key=value" not in errors  # which nobody has to give


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *(("estimate", option, "0") for option in ("mfu", "peak", "link", "network", "gpus-per-node", "samples")),
        ("estimate", "images-per-second", "nan"),
        ("estimate", "image-bytes", "-1"),
        ("estimate", "latency", "-1"),
        ("probe", "temperature", "nan"),
        ("probe", "rates", "inf"),
    ],
)
def test_numbers_that_cannot_be_are_one_line(
    name: str, option: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os._exit", lambda status: pytest.fail(f"it went on, to status {status}"))
    assert run_script(monkeypatch, f"{name}.py", "demo", f"--{option}", value) == 2
    errors = capsys.readouterr().err
    assert f"--{option} " in errors and "above 0" in errors and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("0", "not a number from 1 to 100"),
        ("101", "not a number from 1 to 100"),
        ("1e1", "not a number from 1 to 100"),
        ("data.frames=8", "a setting: give it before the options"),
    ],
)
def test_numbers_of_clips_that_cannot_be_are_one_line(
    value: str, why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os._exit", lambda status: pytest.fail(f"it went on, to status {status}"))
    assert run_script(monkeypatch, "validate.py", "runs/demo", "--clips", "3", value) == 2
    assert capsys.readouterr().err == f"validate.py: error: argument --clips: {value} is {why}\n"


@pytest.mark.parametrize("name", [*NAMES, "predict", "compare", "demo_data", "motion_classes", "bench"])
def test_help_has_an_example(name: str) -> None:
    command = name in (*NAMES, "predict")
    folder = CHECKOUT / ("pipeline/commands" if command else "scripts")
    text = (folder / f"{name}.py").read_text().split('"""')[1]
    program = f"maskfeat {name}" if command else f"scripts/{name}.py"
    assert program in text and (("\nExample" in text) or name == "bench")


@pytest.mark.parametrize(("name", "kind"), [("pretrain", Recipe), ("finetune", FinetuneRecipe)])
def test_recipes_are_listed_with_what_they_are_about(
    name: str, kind: type[TrainingRecipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script(monkeypatch, f"{name}.py", "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    listed = dict(line.split(maxsplit=1) for line in lines)
    assert set(listed) == {file.stem for file in kind.folder.glob("*.yaml")}
    assert all(about.endswith(".") and about.count(". ") == 0 for about in listed.values())
    assert listed["vit_base_300e" if name == "pretrain" else "vit_base_100e"].startswith("ViT-B/16")


def test_all_recipes_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["maskfeat", "--list"])
    console()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.endswith(":")] == ["maskfeat pretrain RECIPE:", "maskfeat finetune RECIPE:"]
    assert len(lines) == 2 + len(list(Recipe.folder.rglob("*.yaml")))


@pytest.mark.parametrize("name", ["report", "estimate"])
def test_a_reader_that_has_enough_ends_a_script(name: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    arguments = [tmp_path] if name == "report" else ["demo", "--images-per-second", "100"]
    command = [sys.executable, CHECKOUT / "scripts" / f"{name}.py", *arguments]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_demos_images_replace_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    out = tmp_path / "my images"
    (out / "train").mkdir(parents=True)
    (out / "train" / "mine.jpg").write_bytes(b"mine")
    assert run_script(monkeypatch, "demo_data.py", out) == 2
    assert f"{out} has files that this program did not write: name a new folder\n" in capsys.readouterr().err
    assert (out / "train" / "mine.jpg").read_bytes() == b"mine"
