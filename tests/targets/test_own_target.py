"""The target of docs/how-to/own-target.md, added from outside the package: it trains, resumes, draws and exports."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import losses, pretrain
from making import mask_of
from PIL import Image
from scripting import run_script

from pipeline.config import load_recipe
from pipeline.settings import ConfigError
from pipeline.targets.registry import TARGETS
from pipeline.targets.target import Target

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def colour(monkeypatch: pytest.MonkeyPatch) -> type[Target]:
    """Register the target of docs/how-to/own-target.md, by running its text, for the time of a test."""
    (text,) = re.findall(
        r"```python\n(.*?)```", (CHECKOUT / "docs" / "how-to" / "own-target.md").read_text(), re.DOTALL
    )
    before = dict(TARGETS)
    exec(compile(text, "own-target.md", "exec"), {"__name__": "own_target"})
    added = TARGETS["colour"]
    TARGETS.clear()
    TARGETS.update(before)
    monkeypatch.setitem(TARGETS, "colour", added)
    return added


def test_its_targets_are_the_mean_colours(colour: type[Target]) -> None:
    images = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    cells = torch.rand(2, 2, 3) < 0.5
    described = colour(16).describe(images, mask_of(cells))  # type: ignore[call-arg]
    wanted = [
        images[i, :, 16 * r : 16 * r + 16, 16 * c : 16 * c + 16].double().mean((1, 2)) / 255
        for i, r, c in cells.nonzero().tolist()
    ]
    np.testing.assert_allclose(described, np.stack(wanted), atol=1e-6)


def test_it_trains_resumes_draws_and_exports(
    colour: type[Target], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["target.kind=colour", f"data.validation={shards}", "data.validation_samples=16", "run.eval_every=4"]
    pretrain(shards, tmp_path / "whole", *settings, "run.max_steps=4")
    for steps in (2, 4):
        pretrain(shards, tmp_path / "parts", *settings, f"run.max_steps={steps}")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    sheet = np.asarray(Image.open(tmp_path / "whole" / "pictures" / "step-00000004.png"))
    assert sheet.ndim == 3 and sheet[26:, 204:300].std() > 0
    assert run_script(monkeypatch, "export.py", tmp_path / "whole", tmp_path / "weights") == 0
    assert "by\npredicting the mean colour of masked" in (tmp_path / "weights" / "README.md").read_text()


def test_no_other_kind_is_known() -> None:
    kinds = r"target\.kind=colour is not a kind of target: choose one of hog, hog_scales, pixels"
    with pytest.raises(ConfigError, match=kinds):
        load_recipe("demo", ["data.shards=none", "target.kind=colour"])
    with pytest.raises(ConfigError, match=r"target\.kind=label is not a kind of target: did you mean labels\?"):
        load_recipe("demo", ["data.shards=none", "target.kind=label"])
