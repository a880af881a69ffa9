"""The README's first command, from its images to its last line: one real run that the tests below look at."""

import json
import os
import re
import resource
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from launching import CHECKOUT, free_port, metrics
from PIL import Image

from pipeline.build import build_model
from pipeline.checkpoints.checkpoint import newest
from pipeline.config import load_recipe
from pipeline.data.loader import Loader
from pipeline.data.request import validation_requests
from pipeline.pixels import normalise
from shards.manifest import Manifest


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and output of `scripts/demo.sh`, run whole."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    return folder, run_demo(folder)


def run_demo(folder: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        ["bash", "scripts/demo.sh", str(folder)], cwd=CHECKOUT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_model_learns_more_than_the_mean(demo: tuple[Path, str]) -> None:
    folder, output = demo
    baselines = json.loads((folder / "run" / "baselines.json").read_text())
    loss = metrics(folder / "run")[-1]["val_loss"]
    assert loss < 0.92 * baselines["mean"] < baselines["zero"]
    for number in (loss, baselines["mean"], baselines["zero"], baselines["untrained"]):
        assert f"{number:.4f}" in output  # what is printed is what was measured
    for path in (f"tensorboard --logdir {folder}/run\n", f"{folder}/weights", f"{folder}/run/pictures/step-"):
        assert path in output


def test_a_second_call_is_quick_and_says_what_it_reuses(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = run_demo(folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 30  # seconds of CPU, of the hundreds that the first call takes
    for part in (".venv", f"{folder}/images", f"{folder}/run", f"{folder}/weights"):
        assert f"reusing {part}" in output
    assert "already built" in output


def test_the_picture_shows_image_mask_target_and_prediction(demo: tuple[Path, str]) -> None:
    _, output = demo
    (path,) = re.findall(r"picture +(\S+)", output)
    sheet = np.asarray(Image.open(path).convert("RGB")).astype(float)
    image, masked, target, predicted = (sheet[26 : 26 + 288, x : x + 288] for x in range(0, 4 * 294, 294))
    hidden = (masked == 110).all(-1)
    assert hidden.mean() == pytest.approx(14 / 36, abs=0.01)
    np.testing.assert_array_equal(masked[~hidden], image[~hidden])
    coloured = predicted[..., 0] - predicted[..., 2]  # only what was predicted is drawn in colour
    assert coloured[hidden].max() > 100 and np.abs(coloured[~hidden]).max() == 0
    assert target[..., 0].std() > 20
    np.testing.assert_allclose(predicted[~hidden] / 0.3, target[~hidden], atol=4)  # elsewhere the target, dimmed


def test_exported_weights_are_the_trained_encoder(demo: tuple[Path, str]) -> None:
    """Loaded strictly by plain timm in a process that has none of our packages: equal features on real images."""
    folder, _ = demo
    found = newest(folder / "run" / "checkpoints", print)
    assert found
    recipe = load_recipe(str(folder / "run" / "config.yaml"))
    model = build_model(recipe).eval()
    model.load_state_dict(found.weights())
    manifest = Manifest.load(folder / "shards" / "validation")
    requests = validation_requests(manifest, recipe.data, samples=8, micro_batch=8, rank=0, world_size=1, seed=0)
    (batch,) = Loader(manifest, recipe.data, 8, torch.device("cpu")).batches(requests)
    images = normalise(batch.inputs, torch.float32)
    torch.save(images, folder / "images.pt")
    code = (
        "import sys, timm, torch\n"
        f"model = timm.create_model('local-dir:{folder / 'weights'}', pretrained=True).eval()\n"
        f"features = model.forward_features(torch.load('{folder / 'images.pt'}'))\n"
        f"torch.save(features, '{folder / 'features.pt'}')\n"
        "assert not {'pipeline', 'model', 'shards'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True, cwd=folder)
    with torch.no_grad():
        expected = model.encoder.forward_features(images)
    # Equal but for the order of sums, which other tests may have changed in this process by the number of threads
    torch.testing.assert_close(torch.load(folder / "features.pt"), expected, atol=1e-5, rtol=0)
    exported = safetensors.torch.load_file(folder / "weights" / "model.safetensors")
    trained = model.encoder.state_dict()
    assert exported.keys() == trained.keys() and all(torch.equal(exported[name], trained[name]) for name in trained)
    config = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{folder / 'weights'}", pretrained=True))
    assert [*config["mean"], *config["std"]] == [0.485, 0.456, 0.406, 0.229, 0.224, 0.225]
    assert [*config["input_size"], config["crop_pct"]] == [3, 96, 96, 1.0]


def test_tensorboard_serves_curves_and_picture(demo: tuple[Path, str]) -> None:
    """A real TensorBoard, asked through its HTTP API as a browser would."""
    folder, _ = demo
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder / "run" / "tensorboard")]
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        base = f"http://127.0.0.1:{port}/data/plugin"
        curves = wait_for(f"{base}/scalars/tags")
        assert all("loss" in curves[curve] for curve in (".", "validation", "baseline-mean"))
        for tag in ("optimizer/learning_rate", "speed/images_per_second", "reading/wait", "system/memory_gib"):
            assert tag in curves["."]
        logged = {line["step"]: line["loss"] for line in metrics(folder / "run")}
        served = {step: value for _, step, value in get(f"{base}/scalars/scalars?run=.&tag=loss")}
        assert served.keys() == logged.keys()
        assert served == pytest.approx(logged, rel=1e-6)
        (series,) = get(f"{base}/images/tags")["."].values()
        assert series
        shown = get(f"{base}/images/images?run=.&tag=reconstruction")
        picture = urllib.request.urlopen(f"{base}/images/individualImage?{shown[-1]['query']}").read()
        (folder / "served.png").write_bytes(picture)
        last = sorted((folder / "run" / "pictures").glob("*.png"))[-1]
        np.testing.assert_array_equal(np.asarray(Image.open(folder / "served.png")), np.asarray(Image.open(last)))
    finally:
        server.terminate()
        server.wait()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())


def wait_for(url: str) -> Any:
    """The answer once the server is up and has read the run."""
    deadline = time.monotonic() + 60
    while True:
        try:
            answer = get(url)
            if "loss" in answer.get("validation", {}):
                return answer
        except OSError:
            pass
        assert time.monotonic() < deadline, "TensorBoard does not serve the run"
        time.sleep(0.5)
