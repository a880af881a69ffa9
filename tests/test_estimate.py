"""Estimates against the published costs of the models, hand-made arithmetic, and the parameters of real modules."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.build import build_model
from pipeline.config import ConfigError, Recipe, load_recipe
from scripts.estimate import estimate, forward_macs, wire_bytes

ESTIMATE = Path(__file__).resolve().parents[1] / "scripts" / "estimate.py"


def recipe(name: str = "vit_base_300e", *overrides: str) -> Recipe:
    return load_recipe(name, ["data.shards=none", *overrides])


@pytest.mark.parametrize(("name", "gflop"), [("vit_base_300e", 105.5), ("vit_large_1600e", 369)])
def test_flops_of_an_image_are_those_known_of_the_models(name: str, gflop: float) -> None:
    """ViT-B/16 takes 17.58 GMAC forward, its head on all patches; with the backward pass three times that."""
    with torch.device("meta"):
        model = build_model(recipe(name))
    assert 6 * forward_macs(model, masked=196) / 1e9 == pytest.approx(gflop, rel=1.3e-3)
    assert 6 * forward_macs(model, masked=78) / 1e9 == pytest.approx(gflop, rel=2e-3)


def test_flops_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = build_model(recipe("demo")).eval()
    mask = torch.zeros(2, 6, 6, dtype=torch.bool)
    mask[:, :2] = True
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(2, 3, 96, 96), mask)
    assert counter.get_total_flops() == 2 * 2 * forward_macs(model, masked=12)


@pytest.mark.parametrize(("stage", "times"), [(0, 2), (1, 2), (2, 4 + 1), (3, 4 * 3)])
def test_wire_bytes(stage: int, times: int) -> None:
    """Of 8 ranks and four micro-batches: a rank passes on 7/8 of everything that is reduced or gathered."""
    assert wire_bytes(1000, 2, stage, ranks=8, micro_batches=4) == times * 1000 * 2 * 7 / 8
    assert wire_bytes(1000, 2, stage, ranks=1, micro_batches=4) == 0


def test_a_step_is_compute_and_wire() -> None:
    """2,048 images on 16 GPUs of two nodes: 128 each; 15/16 of 2 x 2 bytes of a billion parameters."""
    step = estimate(recipe(), 10**9, rate=1000, gpus=16, gpus_per_node=8, link=500e9, network=100e9)
    assert step.compute == pytest.approx(0.128)
    assert step.sent == pytest.approx(3.75e9)
    assert step.wire == pytest.approx(0.0375)  # the network, not the faster link
    assert step.images_per_second == pytest.approx(2048 / 0.1655)
    one_node = estimate(recipe(), 10**9, rate=1000, gpus=8, gpus_per_node=8, link=500e9, network=100e9)
    assert one_node.wire == pytest.approx(3.5e9 / 500e9)


def test_micro_batches_cost_zero_3_more() -> None:
    three = recipe("vit_base_300e", "engine.zero_stage=3", "engine.compile=target", "engine.micro_batch=64")
    step = estimate(three, 10**6, rate=1000, gpus=8, gpus_per_node=8, link=1e9, network=1e9)
    assert step.sent == pytest.approx(4 * 3 * 2e6 * 7 / 8)


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(ConfigError, match="2048 cannot be shared out evenly to 7 GPUs"):
        estimate(recipe(), 10**6, rate=1000, gpus=7, gpus_per_node=8, link=1e9, network=1e9)


def test_command_line() -> None:
    """300 epochs of a million images of 100 kB at 1,000 images/s: 30 TB; on one GPU, which sends nothing, 83 hours."""
    command = [ESTIMATE, "vit_base_300e", "--gpus", "1", "8", "--images-per-second", "1000"]
    command += ["--samples", "1024000", "--image-bytes", "100000", "optim.batch_size=1024", "run.save_every=10000"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines()}
    assert lines["schedule"][1] == "300,000"
    assert lines["1"][6:8] == ["85.33", "85.3"]
    assert float(lines["8"][6]) == pytest.approx(85.33 / 8, rel=0.01)
    assert lines["read"][1:3] == ["30.7", "TB"]
    assert lines["3"][1:] == ["checkpoints", "of", "1.03", "GB"]
    assert lines["written"][1:] == ["30", "checkpoints,", "31", "GB"]

    refused = subprocess.run([sys.executable, ESTIMATE, "no_such"], capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: no recipe 'no_such'")
