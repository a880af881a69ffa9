"""The demo of video, from its packages to its last line: one real run that the tests below look at."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from launching import CHECKOUT, metrics
from PIL import Image
from safetensors.torch import load_file

from shards.manifest import Manifest


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and output of `scripts/demo_video.sh`, run whole."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = ["bash", "scripts/demo_video.sh", str(folder)]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, done.stdout


def test_the_model_learns_more_than_the_mean(demo: tuple[Path, str]) -> None:
    folder, output = demo
    baselines = json.loads((folder / "run" / "baselines.json").read_text())
    last = metrics(folder / "run")[-1]
    assert last["val_loss"] < 0.95 * baselines["mean"] < baselines["zero"]
    assert last["frames_per_second"] == pytest.approx(8 * last["images_per_second"])
    for number in (last["val_loss"], baselines["mean"], baselines["zero"], baselines["copy"]):
        assert f"{number:.4f}" in output  # what is printed is what was measured


def test_seconds_that_were_never_trained_on_are_measured_apart(demo: tuple[Path, str]) -> None:
    folder, output = demo
    (said,) = re.findall(r"^step \d+: (.*)$", output, re.MULTILINE)
    later = {name: float(value) for name, value in (part.split() for part in said.split(", "))}
    assert 0 < later["copy"] < later["mean"] < later["zero"] and later["val_loss"] < later["mean"]
    train, validation, held_out = (Manifest.load(folder / "shards" / name) for name in ("train", "validation", "later"))
    assert len({train.identity, validation.identity, held_out.identity}) == 3
    assert len(train) == 95 and len(validation) == 31  # what the figures of the docs are of


def test_the_animation_moves(demo: tuple[Path, str]) -> None:
    _, output = demo
    (path,) = re.findall(r"animation +(\S+)", output)
    with Image.open(path) as animation:
        assert animation.n_frames == 4  # of 8, every second one is a target
        first = animation.convert("RGB").tobytes()
        animation.seek(3)
        assert animation.convert("RGB").tobytes() != first


def test_the_weights_are_there_with_a_card(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    weights = load_file(folder / "weights" / "model.safetensors")
    assert weights["patch_embed.proj.weight"].shape == (128, 3, 2, 16, 16)
    assert "clips of 8 frames" in (folder / "weights" / "README.md").read_text()
