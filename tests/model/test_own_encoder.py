"""The encoder of docs/how-to/own-encoder.md, added from outside: it computes as timm does, trains and resumes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import CHECKOUT, losses, pretrain
from torch.utils.flop_counter import FlopCounterMode

from model.encoders.registry import ENCODERS, build_network
from model.maskfeat import MaskFeat
from pipeline import build
from pipeline.settings import ConfigError

OPTIONS = {"embed_dim": 32, "depth": 2, "patch_size": 8}


@pytest.fixture
def mixer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Register the encoder of the page by running its text, as registry.py would, and yield what builds its network."""
    text = (CHECKOUT / "docs" / "how-to" / "own-encoder.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    before, names = dict(ENCODERS), {"__name__": "own_encoder"}
    exec(compile(block, "own-encoder.md", "exec"), names)
    build_mixer: Any = names["build_mixer"]

    def built(name: str, size: int, frames: int | None = None, classes: int = 0, /, **options: Any) -> Any:
        if name == "mixer":
            return build_mixer(size, classes, **options)
        return build_network(name, size, frames, classes, **options)

    monkeypatch.setattr(build, "build_network", built)
    yield build_mixer
    ENCODERS.clear()
    ENCODERS.update(before)


def test_its_features_and_operations_are_those_of_timm(mixer: Any) -> None:
    network = mixer(32, **OPTIONS).eval()
    view = ENCODERS[type(network)](network)
    inputs = torch.randn(2, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        features = network.forward_features(inputs)
    torch.testing.assert_close(view.encode(view.embed(inputs)), features, rtol=0, atol=0)
    torch.testing.assert_close(view.pooled(inputs), features.mean(1), rtol=0, atol=0)
    torch.testing.assert_close(view.pooled_blocks(inputs, [1], "mean")[0], features.mean(1), rtol=0, atol=0)
    assert 2 * 2 * view.macs() == counter.get_total_flops()  # two inputs, two FLOP a multiply-add
    assert [view.layer_of(name) for name in ("stem.proj.bias", "blocks.1.norm1.bias", "norm.bias")] == [0, 2, 3]


def test_hidden_patches_do_not_reach_the_predictions(mixer: Any) -> None:
    model = MaskFeat(mixer(32, **OPTIONS), 4).eval()
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1, 2] = True
    inputs = torch.randn(1, 3, 32, 32)
    changed = inputs.clone()
    changed[:, :, 8:16, 16:24] += 1  # the hidden patch
    assert model(inputs, mask).shape == (1, 4)
    torch.testing.assert_close(model(changed, mask), model(inputs, mask), rtol=0, atol=0)
    changed[:, :, :8, :8] += 1  # a visible one
    assert not torch.equal(model(changed, mask), model(inputs, mask))


def test_it_trains_and_resumes(mixer: Any, shards: Path, tmp_path: Path) -> None:
    chosen = ["model.name=mixer", "model.position_init=random", f"model.options={OPTIONS}"]
    pretrain(shards, tmp_path / "whole", *chosen, "run.max_steps=4")
    for steps in (2, 4):
        pretrain(shards, tmp_path / "parts", *chosen, f"run.max_steps={steps}")
    found = losses(tmp_path / "whole")
    assert losses(tmp_path / "parts") == found and len(found) == 4 and len(set(found)) == 4


@pytest.mark.parametrize("setting", ["model.position_init=sincos", "model.decoder=light"])
def test_what_does_not_work_names_the_setting(mixer: Any, shards: Path, tmp_path: Path, setting: str) -> None:
    chosen = ["model.name=mixer", "model.position_init=random", f"model.options={OPTIONS}"]
    with pytest.raises(ConfigError, match=r"a mixer .*: set model\.(position_init=random|decoder=null)"):
        pretrain(shards, tmp_path, *chosen, setting)
