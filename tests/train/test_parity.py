"""The algorithm is the published one: numbers that SlowFast's and mmpretrain's own code gave, in tests/golden.

`tests/golden/make.py` tells how they were made; docs/explanation/parity.md, what differs on purpose.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from golden import checkpoints, formula
from making import mask_of
from torch import Tensor
from torch.nn import functional as F

from model.convert import classifier, load_mmpretrain, load_slowfast
from model.maskfeat import MaskFeat
from model.weights import SLOWFAST, read
from pipeline.cluster.world import join
from pipeline.config import load_recipe
from pipeline.pixels import normalise
from pipeline.targets.hog import hog_target
from pipeline.targets.target import squared_errors
from pipeline.train.engine import Engine, decay_groups
from pipeline.train.state import capture

IMAGES, MASKS = formula.pictures(), formula.masks()
LOAD = {"slowfast": load_slowfast, "mmpretrain": load_mmpretrain}


def golden(code: str) -> dict[str, Tensor]:
    with np.load(Path(__file__).parents[1] / "golden" / f"{code}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file}


def model_of(code: str, folder: Path) -> MaskFeat:
    return LOAD[code](checkpoints.write(folder / code, code, checkpoints.tensors(code, "pretraining")))


@pytest.mark.parametrize("code", LOAD)
def test_predictions(code: str, tmp_path: Path) -> None:
    with torch.no_grad():
        predictions = model_of(code, tmp_path)(formula.exact_input(IMAGES), MASKS[0])
    torch.testing.assert_close(predictions, golden(code)["predictions"], atol=1e-5, rtol=0)


def test_predictions_from_pixels(tmp_path: Path) -> None:
    """With the mean and the standard deviation that the images are normalised with."""
    with torch.no_grad():
        predictions = model_of("slowfast", tmp_path)(normalise(IMAGES, torch.float32), MASKS[0])
    torch.testing.assert_close(predictions, golden("slowfast")["normalised_predictions"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("code", LOAD)
def test_logits_of_fine_tuned_checkpoints(code: str, tmp_path: Path) -> None:
    path = checkpoints.write(tmp_path / code, code, checkpoints.tensors(code, "fine_tuned"))
    with torch.no_grad():
        logits = classifier(read(path)).eval()(formula.exact_input(IMAGES))
    torch.testing.assert_close(logits, golden(code)["logits"], atol=1e-5, rtol=0)


def test_targets() -> None:
    """If gradients are exact in both codes, every bin is the same; if magnitudes are, too, so is every bit."""
    ours, theirs = hog_target(IMAGES)[MASKS[0].flatten(1)], golden("slowfast")["targets"]
    assert torch.equal(ours == 0, theirs == 0)  # empty bins, and flat cells
    torch.testing.assert_close(ours, theirs, atol=2e-7, rtol=0)
    striped = slice(formula.MASKED, 2 * formula.MASKED), slice(0, 72)  # two channels of the second image
    assert torch.equal(ours[striped], theirs[striped]) and ours[striped].any()


def test_targets_of_normalised_floats_differ_only_by_their_rounding() -> None:
    """SlowFast takes the HOG of normalised floats. A gradient that is exactly vertical, or none, is rounding there."""
    ours, theirs = hog_target(IMAGES)[MASKS[0].flatten(1)], golden("slowfast")["normalised_targets"]
    padded = F.pad(IMAGES.float(), (1, 1, 1, 1), mode="reflect")
    smooth = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    undecided = (smooth[..., :-2] == smooth[..., 2:]).float()  # no horizontal gradient: on the border of two bins
    cells = F.max_pool2d(undecided, 8).unflatten(3, (4, 2)).unflatten(2, (4, 2)).permute(0, 2, 4, 1, 3, 5)
    cells = cells.flatten(1, 2)[MASKS[0].flatten(1)][:, :, None].expand(-1, -1, 9, -1, -1).flatten(1).bool()
    assert cells.any() and not cells.all()
    torch.testing.assert_close(ours[~cells], theirs[~cells], atol=1e-5, rtol=0)
    assert not torch.allclose(ours[cells], theirs[cells], atol=1e-1)


def test_loss(tmp_path: Path) -> None:
    with torch.no_grad():
        predictions = model_of("slowfast", tmp_path)(formula.exact_input(IMAGES), MASKS[0])
    targets = hog_target(IMAGES)[MASKS[0].flatten(1)]
    loss = squared_errors(predictions, targets, formula.IMAGES).mean()
    torch.testing.assert_close(loss, golden("slowfast")["loss"], atol=0, rtol=1e-6)


def test_the_same_parameters_are_decayed(tmp_path: Path) -> None:
    model = model_of("slowfast", tmp_path)
    (decayed,) = (group["params"] for group in decay_groups(model, 0.05) if group["weight_decay"])
    names = {parameter: SLOWFAST.key(name) for name, parameter in model.named_parameters()}
    assert sorted(names[parameter] for parameter in decayed) == checkpoints.KEYS["slowfast"]["decayed"]


@pytest.mark.parametrize(("stage", "micro_batch"), [(0, 2), (1, 2), (1, 1), (2, 2), (3, 2)])
def test_twenty_steps(stage: int, micro_batch: int, tmp_path: Path) -> None:
    """Losses, gradient norms and learning rates of every step, then predictions and the size of every parameter."""
    model, want = model_of("slowfast", tmp_path), golden("slowfast")
    names = [SLOWFAST.key(name) for name, _ in model.named_parameters()]
    recipe = load_recipe(
        "vit_base_300e",
        [
            "data.shards=/nowhere",
            f"optim.batch_size={formula.BATCH}",
            f"optim.lr={2e-3 * 256 / formula.BATCH}",
            f"optim.epochs={formula.STEPS / formula.STEPS_PER_EPOCH}",
            "optim.warmup_epochs=3",
            "engine.precision=fp32",
            "engine.compile=none",
            f"engine.zero_stage={stage}",
            f"engine.micro_batch={micro_batch}",
        ],
    )
    world = join()
    micro_batch = recipe.micro_batch(world.size)
    engine = Engine(model, recipe.engine, recipe.optim, micro_batch, world, formula.STEPS_PER_EPOCH)
    inputs, targets = formula.exact_input(IMAGES), hog_target(IMAGES)
    for step, expected in enumerate(want["steps"]):
        engine.schedule.step_update(step)
        loss = 0.0
        for index in formula.batch(step).split(micro_batch):
            mask = MASKS[step, index]
            predictions = engine.predict(inputs[index], mask_of(mask))
            errors = squared_errors(predictions, targets[index][mask.flatten(1)], len(index))
            engine.backward(errors.mean())
            engine.update()
            loss += errors.sum().item() / formula.BATCH
        got = torch.tensor([loss, engine.grad_norm(), engine.learning_rate], dtype=torch.float64)
        torch.testing.assert_close(got, expected, atol=0, rtol=1e-5, msg=f"loss, gradient norm and rate of step {step}")

    with torch.no_grad():
        predictions = engine.predict(inputs, mask_of(MASKS[0]))
    torch.testing.assert_close(predictions, want["trained_predictions"], atol=1e-5, rtol=0)
    order = [key for key in checkpoints.KEYS["slowfast"]["pretraining"] if not key.startswith(checkpoints.BUFFERS)]
    weights = dict(capture(engine, world))
    norms = {SLOWFAST.key(name.removeprefix("weight/")): value.double().norm() for name, value in weights.items()}
    assert sorted(names) == sorted(order)
    torch.testing.assert_close(torch.stack([norms[key] for key in order]), want["trained_norms"], atol=0, rtol=1e-6)
