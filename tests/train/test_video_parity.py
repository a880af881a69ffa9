"""Videos as in the published code: numbers that SlowFast gave, in tests/golden/video.npz.

`tests/golden/make_video.py` tells how they were made; docs/parity.md, what differs on purpose.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import checkpoints, clips, formula
from torch import Tensor

from model.convert import classifier, load_slowfast
from model.maskfeat import MaskFeat
from model.weights import read

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


def predict(model: MaskFeat, inputs: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        predictions: Tensor = model.eval()(inputs, mask)
    return predictions


@pytest.mark.parametrize("kind", ["", "tubelet_"])
def test_predictions(kind: str, tmp_path: Path) -> None:
    predictions = predict(load_slowfast(checkpoint(f"{kind}pretraining", tmp_path)), INPUTS, MASKS[0])
    torch.testing.assert_close(predictions, golden()[f"{kind}predictions"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["", "tubelet_"])
def test_logits(kind: str, tmp_path: Path) -> None:
    network = classifier(read(checkpoint(f"{kind}fine_tuned", tmp_path)))
    torch.testing.assert_close(logits_of(network, INPUTS), golden()[f"{kind}logits"], atol=1e-5, rtol=0)


def logits_of(network: torch.nn.Module, inputs: Tensor) -> Tensor:
    from model.encoders.registry import encoder_of

    with torch.no_grad():
        view = encoder_of(network.eval())
        logits: Tensor = view.head(view.pooled(inputs))
    return logits


def test_predictions_of_mvit_v2_s(tmp_path: Path) -> None:
    model = load_slowfast(checkpoint("small_pretraining", tmp_path))
    mask = (torch.arange(8 * 7 * 7).reshape(1, 8, 7, 7) * 5) % 13 < 5
    predictions = predict(model, formula.exact_input(clips.clips(16, 224)[:1]), mask)
    torch.testing.assert_close(predictions[::61], golden()["small_predictions"], atol=1e-5, rtol=0)
