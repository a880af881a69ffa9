"""Benchmarks: contestants do the same, and counts are right."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import CHECKOUT, free_port
from ranks import Ranks
from torch.utils.flop_counter import FlopCounterMode

from pipeline.build import build_model
from pipeline.cluster.world import join
from pipeline.config import load_recipe
from pipeline.report.pace import Clock
from pipeline.train.setup import open_data

BENCH = CHECKOUT / "scripts" / "bench.py"
SMALL = (
    "data.image_size=32",
    "model.options={embed_dim: 32, depth: 2, num_heads: 1}",
    "engine.zero_stage=1",
    "engine.compile=none",
)


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Import as from a script in scripts/."""
    monkeypatch.syspath_prepend(str(CHECKOUT / "scripts"))


def figures(file: Path) -> dict[str, dict[str, Any]]:
    """Return the first figure of each unit."""
    return {figure["unit"]: figure for figure in reversed(json.loads(file.read_text())["figures"])}


def test_a_figure_has_its_ratios_and_comes_back_from_json(scripts: None) -> None:
    from benchmarks.figures import Figure

    figure = Figure("rate", "images/s", 30.0, {"other": 20.0}, {"most": 120.0}, {"ranks": 1})
    content = json.loads(json.dumps(figure.to_json()))
    assert content["peers"]["other"] == {"value": 20.0, "ratio": 1.5}
    assert content["limits"]["most"] == {"value": 120.0, "ratio": 0.25}
    assert Figure.from_json(content) == figure


def test_a_step_on_two_ranks_beside_plain_pytorch(tmp_path: Path) -> None:
    """Both train the same; what a rank sends is counted, and is what estimate.py reckons with; TFLOP/s are torch's."""
    out = tmp_path / "step.json"
    options = ["--images", "4", "--steps", "1", "--json", str(out)]
    ranks = Ranks(2, ["step", "demo", *SMALL, *options], tmp_path / "said", free_port(), "scripts/bench.py")
    assert ranks.wait(300) == [0, 0], ranks.said()[-4000:]
    found = figures(out)

    model = build_model(load_recipe("demo", ["data.shards=none", *SMALL]))
    weights = sum(parameter.numel() for parameter in model.parameters())
    norm = 4
    assert found["bytes"]["achieved"] == pytest.approx((3 * weights * 4 + 2 * norm) / 2, abs=2 * norm)
    assert found["bytes"]["peers"]["by estimate.py"]["value"] == pytest.approx(3 * weights * 4 / 2)

    mask = torch.zeros(1, 2, 2, dtype=torch.bool)
    mask[0, 0, 0] = True  # int(0.4 * 4) patches
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32), mask)
    tflops = 3 * counter.get_total_flops() * found["images/s"]["achieved"] / 2 / 1e12
    assert found["TFLOP/s"]["achieved"] == pytest.approx(tflops)

    (plain,) = found[""]["peers"].values()
    assert found[""]["achieved"] == pytest.approx(plain["value"], abs=1e-5)
    assert found["images/s"]["settings"]["ranks"] == 2
    assert json.loads(out.read_text())["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_several_masks_of_an_image_are_counted_as_views(scripts: None, shards: Path) -> None:
    """Four views a step are two images, from shards as from memory, and the rate is one of two masks."""
    from benchmarks.end_to_end import pixels
    from benchmarks.step import Loop, resident, settings_of, step_recipe

    world = join()
    recipe = step_recipe(["demo", *SMALL, "mask.repeats=2"], 4, world, shards)
    loop, data = Loop(recipe, world), open_data(recipe, world)
    for batches in (resident(recipe, world), pixels(data.batches(0, 1), Clock(world.device))):
        images, keys = next(batches)
        assert images.shape == (2, 3, 32, 32) and keys.shape == (2,)
        assert loop.steps(1, iter([(images, keys)])) == 4
        example = loop.examples.example(images, keys, recipe.masks)
        with torch.no_grad():
            predictions = loop.engine.predict(example.inputs, example.mask)
        assert len(example.mask.cells) == 4 and len(predictions) == len(example.targets)
    data.close()
    assert settings_of(recipe, world)["mask.repeats"] == 2


def test_a_step_of_a_recipe_with_a_mixture_is_measured_without_its_data(scripts: None, tmp_path: Path) -> None:
    from benchmarks.step import step_recipe

    recipe = tmp_path / "mixture.yaml"
    recipe.write_text("base: small\ndata: {mixture: {a: {shards: x}, b: {shards: y}}}\n")
    for settings in ([str(recipe), "data.mixture.a.weight=3"], ["small", "data.mixture={a: {shards: x}}"]):
        found = step_recipe(settings, 4, join())
        assert found.optim.batch_size == 4 and found.data.mixture is None


def test_the_host_time_of_a_step_is_told_by_part(scripts: None, shards: Path) -> None:
    from benchmarks.host import host
    from pipeline.cluster.world import join

    found = {figure.name: figure.achieved for figure in host(shards, ["engine.micro_batch=8", *SMALL], join(), 3)}
    assert found.keys() == {"data wait", "target", "forward", "backward", "optimizer", "agreement", "logging"}
    assert min(found.values()) > 0 and found["backward"] > found["agreement"]


def test_a_mistake_is_one_line(
    scripts: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench import main

    monkeypatch.setattr(sys, "argv", ["bench.py", "step", "no_such_recipe"])
    assert main() == 2
    assert capsys.readouterr().err.startswith("error: no recipe 'no_such_recipe': give one of")
