"""The wheel: it holds everything that runs, and is enough to train with, from anywhere."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from launching import CHECKOUT, SMALL, losses

PACKAGES = ("model", "pipeline", "shards")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout, in which a build leaves files."""
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(CHECKOUT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / file, copy)
    offline = ("--no-build-isolation", "--no-deps", "--no-index")
    subprocess.run([*PIP, "wheel", *offline, "--wheel-dir", str(out), str(copy)], check=True, timeout=300)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that it is installed to."""
    target = tmp_path_factory.mktemp("installed")
    offline = ("--no-deps", "--no-index", "--no-compile")
    subprocess.run([*PIP, "install", *offline, "--target", str(target), str(wheel)], check=True, timeout=300)
    return target


def run(installed: Path, folder: Path, program: str, *arguments: str) -> str:
    """Run a program of the wheel in a folder; what it says."""
    environment = {name: value for name, value in os.environ.items() if name != "RANK"} | {"PYTHONPATH": str(installed)}
    command = [str(installed / "bin" / program), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_holds_every_package_and_every_recipe(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    kinds = (".py", ".yaml", "py.typed")
    files = [file for package in PACKAGES for file in (CHECKOUT / package).rglob("*") if file.name.endswith(kinds)]
    assert held == {str(file.relative_to(CHECKOUT)) for file in files}
    assert {"pipeline/recipes/finetune/small.yaml", *(f"{package}/py.typed" for package in PACKAGES)} <= held


def test_its_programs_train_from_a_folder_of_images_to_weights(installed: Path, images: Path, tmp_path: Path) -> None:
    where = "import pipeline, shards, model; print(pipeline.__file__, shards.__file__, model.__file__)"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    files = subprocess.check_output([sys.executable, "-P", "-c", where], cwd=tmp_path, env=environment, text=True)
    assert all(file.startswith(str(installed)) for file in files.split())

    assert run(installed, tmp_path, "maskfeat", "--version").startswith("maskfeat ")
    assert "vit_base_300e " in run(installed, tmp_path, "maskfeat", "pretrain", "--list")
    run(installed, tmp_path, "maskfeat-shards", "build", str(images), "set", "--workers", "1")
    settings = [*SMALL, "data.shards=set", "run.dir=run", "run.max_steps=2"]
    said = run(installed, tmp_path, "maskfeat", "pretrain", "demo", "--processes", "1", *settings)
    assert "steps 0 to 2" in said and list(losses(tmp_path / "run")) == [1, 2]
    run(installed, tmp_path, "maskfeat", "export", "run", "weights")
    assert (tmp_path / "weights" / "model.safetensors").is_file()
