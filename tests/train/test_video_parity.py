"""Videos as in the published code: numbers that SlowFast gave, in tests/golden/video.npz.

`tests/golden/make_video.py` tells how they were made; docs/explanation/parity.md, what differs on purpose.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import checkpoints, clips, formula
from torch import Tensor

from model.convert import classifier, load_slowfast
from model.encoders.registry import encoder_of
from model.layout import make_mask
from model.maskfeat import MaskFeat
from model.weights import SLOWFAST, read
from pipeline.cluster.world import join
from pipeline.config import load_recipe
from pipeline.targets.hog import hog_target
from pipeline.targets.target import squared_errors
from pipeline.train.engine import Engine, decay_groups
from pipeline.train.state import capture

GOLDEN = Path(__file__).parents[1] / "golden"
KEYS = json.loads((GOLDEN / "video_keys.json").read_text())
INPUTS, MASKS = formula.exact_input(clips.clips()), clips.masks()


def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN / "video.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file}


def checkpoint(kind: str, folder: Path) -> Path:
    """A checkpoint of SlowFast with the keys and shapes of one of its models, and the formula's weights."""
    shapes = {key: shape for key, shape in KEYS[kind].items() if not key.startswith("hogs.")}
    buffers = {key: torch.ones(shape) for key, shape in KEYS[kind].items() if key.startswith("hogs.")}
    return checkpoints.write(folder / kind, "slowfast", clips.weights(shapes) | buffers)


def groups(model: MaskFeat) -> list[dict[str, Any]]:
    return decay_groups(model, 0.05, [f"encoder.{name}" for name in model.view.decayed_vectors])


def predict(model: MaskFeat, inputs: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        predictions: Tensor = model.eval()(inputs, mask)
    return predictions


def logits_of(network: torch.nn.Module, inputs: Tensor) -> Tensor:
    view = encoder_of(network.eval())
    with torch.no_grad():
        logits: Tensor = view.head(view.pooled(inputs))
    return logits


@pytest.mark.parametrize("kind", ["", "tubelet_"])
def test_predictions(kind: str, tmp_path: Path) -> None:
    predictions = predict(load_slowfast(checkpoint(f"{kind}pretraining", tmp_path)), INPUTS, MASKS[0])
    torch.testing.assert_close(predictions, golden()[f"{kind}predictions"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["", "tubelet_"])
def test_logits(kind: str, tmp_path: Path) -> None:
    network = classifier(read(checkpoint(f"{kind}fine_tuned", tmp_path)))
    torch.testing.assert_close(logits_of(network, INPUTS), golden()[f"{kind}logits"], atol=1e-5, rtol=0)


def test_predictions_of_mvit_v2_s(tmp_path: Path) -> None:
    model = load_slowfast(checkpoint("small_pretraining", tmp_path))
    mask = (torch.arange(8 * 7 * 7).reshape(1, 8, 7, 7) * 5) % 13 < 5
    predictions = predict(model, formula.exact_input(clips.clips(16, 224)[:1]), mask)
    torch.testing.assert_close(predictions[::61], golden()["small_predictions"], atol=1e-5, rtol=0)


def test_logits_of_grids_that_do_not_halve(tmp_path: Path) -> None:
    """At 80 pixels tokens are 20x20, 10x10, 5x5 and then, rounded up, 3x3."""
    network = classifier(read(checkpoint("uneven_fine_tuned", tmp_path)))
    logits = logits_of(network, INPUTS[..., :80, :80])
    torch.testing.assert_close(logits, golden()["uneven_logits"], atol=1e-5, rtol=0)


def test_the_same_parameters_are_decayed(tmp_path: Path) -> None:
    model = load_slowfast(checkpoint("pretraining", tmp_path))
    (decayed,) = (group["params"] for group in groups(model) if group["weight_decay"])
    names = {parameter: SLOWFAST.key(name) for name, parameter in model.named_parameters()}
    assert sorted(names[parameter] for parameter in decayed) == KEYS["decayed"]


def test_targets() -> None:
    """The official target of exact gradients: the HOG of frames 0, 2, 4, ..., each as an image."""
    frames = clips.clips()[:, :, ::2].transpose(1, 2).flatten(0, 1)
    ours = hog_target(frames).unflatten(0, (clips.CLIPS, -1)).flatten(1, 2)
    cells = MASKS[0].repeat_interleave(2, 2).repeat_interleave(2, 3).flatten(1)
    torch.testing.assert_close(ours[cells], golden()["targets"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_ten_steps(stage: int, tmp_path: Path) -> None:
    """Losses, gradient norms and learning rates of every step, then predictions and the size of every parameter."""
    model, want = load_slowfast(checkpoint("pretraining", tmp_path)), golden()
    recipe = load_recipe(
        "vit_base_300e",
        [
            "data.shards=/nowhere",
            f"optim.batch_size={clips.CLIPS}",
            f"optim.lr={2e-3 * 256 / clips.CLIPS}",
            f"optim.epochs={clips.STEPS / clips.STEPS_PER_EPOCH}",
            "optim.warmup_epochs=2",
            "engine.precision=fp32",
            "engine.compile=none",
            f"engine.zero_stage={stage}",
        ],
    )
    world = join()
    settings = recipe.engine, recipe.optim, clips.CLIPS
    engine = Engine(model, *settings, world, clips.STEPS_PER_EPOCH, groups(model))
    targets = hog_target(clips.clips()[:, :, ::2].transpose(1, 2).flatten(0, 1)).flatten(0, 1)
    for step, expected in enumerate(want["trained_steps"]):
        engine.schedule.step_update(step)
        mask = make_mask(MASKS[step], model.view.prediction_layout)
        errors = squared_errors(engine.predict(INPUTS, mask), targets[mask.indices], clips.CLIPS)
        engine.backward(errors.mean())
        engine.update()
        got = torch.tensor([errors.mean().item(), engine.grad_norm(), engine.learning_rate], dtype=torch.float64)
        torch.testing.assert_close(got, expected, atol=0, rtol=1e-5, msg=f"loss, gradient norm and rate of step {step}")

    with engine.evaluating():
        predictions = engine.predict(INPUTS, make_mask(MASKS[0], model.view.prediction_layout))
    torch.testing.assert_close(predictions, want["trained_predictions"], atol=1e-5, rtol=0)
    order = [key for key in KEYS["pretraining"] if not key.startswith("hogs.")]
    norms = {
        SLOWFAST.key(name.removeprefix("weight/")): value.double().norm() for name, value in capture(engine, world)
    }
    norms = {key: norm for key, norm in norms.items() if key in order}
    assert sorted(norms) == sorted(order)
    # Adam turns the rounding of gradients that are nearly zero into steps, most of all in the first block
    torch.testing.assert_close(torch.stack([norms[key] for key in order]), want["trained_norms"], atol=1e-5, rtol=0)
