"""Estimates against the published costs of the models, hand-made arithmetic, and the parameters of real modules."""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scripting import run_script

from model.activations import activation_bytes
from model.encoders.registry import build_network, encoder_of
from model.flops import forward_macs, training_flops
from pipeline.build import build_masker, build_model
from pipeline.commands.estimate import main
from pipeline.config import Recipe, load_recipe
from pipeline.data.settings import Clip
from pipeline.estimate import (
    Cluster,
    Size,
    checkpoint_bytes,
    decoded_frames,
    estimate,
    gpus_for,
    measured_rate,
    state_bytes,
    wire_bytes,
    wire_rounds,
)
from pipeline.optimizers import OPTIMIZERS, build_optimizer
from pipeline.settings import ConfigError


def recipe(name: str = "vit_base_300e", *overrides: str) -> Recipe:
    return load_recipe(name, ["data.shards=none", *overrides])


@pytest.mark.parametrize(("name", "gflop"), [("vit_base_300e", 105.5), ("vit_large_1600e", 369)])
def test_flops_of_an_image_are_those_known_of_the_models(name: str, gflop: float) -> None:
    """ViT-B/16 takes 17.58 GMAC forward, its head on all patches; with the backward pass three times that."""
    with torch.device("meta"):
        model = build_model(recipe(name))
    assert training_flops(model, masked=196) / 1e9 == pytest.approx(gflop, rel=1.3e-3)
    assert training_flops(model, masked=78) / 1e9 == pytest.approx(gflop, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "settings", "gflop"),
    [
        ("vit_base_visible", ["model.decoder=light", "target.kind=hog"], 27.1),
        ("vit_large_visible", ["model.decoder=light", "target.kind=hog"], 92.7),
        ("vit_base_visible", [], 30.9),
        ("vit_large_visible", [], 96.6),
        ("vit_base_128", [], 34.2),
    ],
)
def test_cheaper_recipes_cost_what_arithmetic_says(name: str, settings: list[str], gflop: float) -> None:
    """By the sizes alone; heads that describe hidden patches only are a little cheaper than of all patches."""
    made = recipe(name, *settings)
    with torch.device("meta"):
        model = build_model(made)
    masked = build_masker(made, model.view).masked
    assert training_flops(model, masked) / 1e9 == pytest.approx(gflop, rel=0.015)


@pytest.mark.parametrize(
    ("name", "size", "frames", "published"),
    [
        ("mvit_v2_s", 224, 16, 71),
        ("mvit_v2_l", 224, 16, 377),
        ("vit_base_patch16_224", 224, 16, 180),
        ("vit_large_patch16_224", 224, 16, 597),
    ],
)
def test_multiply_adds_of_a_clip_are_the_published_ones(name: str, size: int, frames: int, published: float) -> None:
    """GFLOPs of a view, as multiply-adds are called in the tables of MaskFeat and VideoMAE on Kinetics-400."""
    with torch.device("meta"):
        view = encoder_of(build_network(name, size, frames, 400))
    assert view.macs() / 1e9 == pytest.approx(published, rel=0.004)


@pytest.mark.parametrize("again", [False, True])
def test_activations_are_those_that_a_transformer_keeps(again: bool) -> None:
    """Count the activations of a block in token widths.

    These are the inputs of three of its layers (x, the norm of x, both twice), queries, keys and values, the output of
    attention, and 4 before and 4 after the GELU; when recomputed, its input alone."""
    video = recipe("vit_base_video", f"engine.activation_checkpointing={again}")
    with torch.device("meta"):
        model = build_model(video).to(torch.bfloat16)
    expected = 12 * (1 if again else 16) * 768 * 1569 * 2
    assert activation_bytes(model, masked=157 * 4) == pytest.approx(expected, rel=0.03 if not again else 0.3)


def test_a_teacher_looks_at_each_image_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ViT-S/16 takes 4.6 GMAC; what it costs more is all that differs from the same model with pixels to predict."""
    heads = 6 * 78 * 768 * (384 - 768) / 1e9  # of the student: as wide as what is predicted
    for masks, one in ((1, "an image"), (4, "a view")):
        gflop = {}
        for target in (["kind=pixels"], ["kind=features", "teacher=vit_small_patch16_224"]):
            settings = [f"target.{setting}" for setting in target] + [f"mask.repeats={masks}"]
            monkeypatch.setattr(sys, "argv", ["estimate.py", "vit_base_300e", *settings, "--gpus", "8"])
            assert main() == 0
            gflop[target[0]] = float(re.search(rf"([\d.]+) GFLOP {one},", capsys.readouterr().out)[1])
        teacher = gflop["kind=features"] - gflop["kind=pixels"] - heads
        assert teacher == pytest.approx(2 * 4.6 / masks, abs=0.11)  # of figures with one decimal


@pytest.mark.parametrize("teacher", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet18"])
def test_classifiers_are_counted_at_the_images_of_the_recipe(
    teacher: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gflop = []
    for target in (["kind=pixels"], ["kind=labels", f"teacher={teacher}"]):
        settings = [f"target.{setting}" for setting in target]
        arguments = ["small", "optim.batch_size=64", *settings, "--gpus", "1"]  # 96 pixels, not the teacher's 224
        monkeypatch.setattr(sys, "argv", ["estimate.py", *arguments])
        status, said = main(), capsys.readouterr()
        assert status == 0, said.err
        gflop.append(float(re.search(r"([\d.]+) GFLOP an image", said.out)[1]))
    assert gflop[1] > gflop[0]


def test_flops_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = build_model(recipe("demo")).eval()
    mask = torch.zeros(2, 6, 6, dtype=torch.bool)
    mask[:, :2] = True
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(2, 3, 96, 96), mask)
    assert counter.get_total_flops() == 2 * 2 * forward_macs(model, masked=12)


@pytest.mark.parametrize(("stage", "times"), [(0, 2), (1, 3), (2, 4 * 2 + 1), (3, 4 * 2)])
def test_wire_bytes(stage: int, times: int) -> None:
    """With 8 ranks, a rank sends 7/8 of what is gathered, and twice that for an all-reduce."""
    assert wire_bytes(1000, 2, stage, ranks=8, micro_batches=4) == times * 1000 * 2 * 7 / 8
    assert wire_bytes(1000, 2, stage, ranks=1, micro_batches=4) == 0


def test_large_models_take_more_rounds_of_messages() -> None:
    """2 x 10^9 numbers are 4 buckets to reduce, and 40 to gather at ZeRO 3, which gathers small tensors one by one."""
    size = Size(parameters=2 * 10**9, small_tensors=100)
    assert [wire_rounds(size, stage, micro_batches=3) for stage in (0, 1, 2, 3)] == [
        2 * 4,
        2 * 4 + 2 + 2,
        3 * 2 * 4 + 2 + 2,
        3 * (40 + 4) + 100 + 2 * 2,
    ]


def test_a_step_is_compute_wire_and_latency() -> None:
    """2,048 images on 16 GPUs of two nodes: 128 each; 15/16 of 3 x 2 bytes of 400 million weights; 4 x 6 messages."""
    size = Size(4 * 10**8, small_tensors=100)
    step = estimate(recipe(), size, 1000, Cluster(16, per_node=8, link=500e9, network=100e9, latency=1e-4))
    assert step.compute == pytest.approx(0.128)
    assert step.sent == pytest.approx(2.25e9)
    assert step.wire == pytest.approx(0.0225)  # the network, not the faster link
    assert step.latency == pytest.approx(6 * 4 * 1e-4)
    assert step.images_per_second == pytest.approx(2048 / 0.1529)
    one_node = estimate(recipe(), size, 1000, Cluster(8, per_node=8, link=500e9, network=100e9, latency=1e-4))
    assert one_node.wire == pytest.approx(2.1e9 / 500e9)
    alone = estimate(recipe(), size, 1000, Cluster(1, per_node=8, link=500e9, network=100e9, latency=1e-4))
    assert (alone.sent, alone.wire, alone.latency) == (0, 0, 0)


def test_micro_batches_cost_zero_3_more() -> None:
    three = recipe("vit_base_300e", "engine.zero_stage=3", "engine.compile=target", "engine.micro_batch=64")
    step = estimate(three, Size(10**6, 100), 1000, Cluster(8, per_node=8, link=1e9, network=1e9, latency=1e-5))
    assert step.sent == pytest.approx(4 * 2 * 2e6 * 7 / 8)
    assert step.latency == pytest.approx((4 * (1 + 1) + 100 + 4) * math.log2(8) * 1e-5)


def test_micro_batches_are_those_of_a_run() -> None:
    """130 images a rank in micro-batches of at most 64: 5 of 26, not 3."""
    two = recipe("vit_base_300e", "engine.zero_stage=2", "optim.batch_size=2080", "engine.micro_batch=64")
    step = estimate(two, Size(10**6, 100), 1000, Cluster(16, per_node=8, link=1e9, network=1e9, latency=1e-5))
    assert step.sent == pytest.approx(wire_bytes(10**6, 2, 2, 16, 5))


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(ConfigError, match="2048 cannot be divided evenly among 7 GPUs"):
        estimate(recipe(), Size(10**6, 100), 1000, Cluster(7, per_node=8, link=1e9, network=1e9, latency=1e-5))


@pytest.mark.parametrize(("stage", "bytes_each"), [(0, 2 + 4 + 12), (1, 2 + 4 + 3), (2, 2 + 4 + 3), (3, 18 / 4)])
def test_memory_of_weights_gradients_and_moments(stage: int, bytes_each: float) -> None:
    made = recipe("vit_base_300e", f"engine.zero_stage={stage}", "engine.compile=none")
    assert state_bytes(made, Size(1000, 0), ranks=4) == pytest.approx(1000 * bytes_each)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["small", "small_video"])
def test_state_is_that_of_the_real_optimizer(name: str, kind: str) -> None:
    made = recipe(kind, f"optim.name={name}", "engine.zero_stage=0", "engine.precision=fp32", "data.image_size=32")
    model = build_model(made)
    weights = [*model.parameters()]
    optimizer = build_optimizer(name, [{"params": weights, "lr": 0.1}], made.optim.betas)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values()]
    held = sum(value.nbytes for value in [*weights, *kept] if value.ndim or value.numel() > 1)
    size = Size(sum(weight.numel() for weight in weights), 0)
    assert checkpoint_bytes(size, name) == held
    assert state_bytes(made, size, ranks=8) == held + 8 * size.parameters  # fp32 weights and gradients


def test_gpus_are_those_that_share_out_the_batch() -> None:
    assert gpus_for(recipe("vit_base_300e")) == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert gpus_for(recipe("mvit_small_300e_k400")) == [8, 16, 32, 64, 128, 256, 512]
    assert gpus_for(recipe("vit_base_video")) == [8, 16, 32, 64, 128]  # 4 clips of each video
    assert gpus_for(recipe("demo", "optim.batch_size=12")) == [1]
    assert gpus_for(recipe("vit_base_visible", "mask.repeats=16")) == [8, 16, 32, 64, 128]
    assert gpus_for(recipe("vit_base_visible", "mask.repeats=16", "data.repeats=4")) == [8, 16, 32]
    assert gpus_for(recipe("vit_base_visible", "mask.repeats=3")) == [1]


@pytest.mark.parametrize(
    ("clip", "frames"),
    [
        (Clip(16, "nominal", 4, None), 64),
        (Clip(16, "stride", 4, None), 61),
        (Clip(16, "fps", 4, 5.0), 91),
        (Clip(1, "stride", 4, None), 1),
    ],
)
def test_frames_that_are_decoded_for_a_clip(clip: Clip, frames: int) -> None:
    """From its first to its last, and from a key frame, of which every 16th is one, to the first."""
    assert decoded_frames(clip) == frames + 7.5


def test_rates_come_from_what_the_benchmark_wrote(tmp_path: Path) -> None:
    """A rate counts if model, size and precision agree, on one rank: the fastest, preferably of the recipe's stage."""
    settings = {
        "model.name": "vit_base_patch16_224",
        "model.options": {},
        "data.image_size": 224,
        "engine.precision": "bf16",
        "engine.zero_stage": 1,
        "engine.activation_checkpointing": False,
        "target.kind": "hog",
        "target.teacher": None,
        "ranks": 1,
    }

    def figure(achieved: float, unit: str = "images/s", **changed: Any) -> dict[str, Any]:
        return {
            "unit": unit,
            "achieved": achieved,
            "settings": settings | {k.replace("__", "."): changed[k] for k in changed},
        }

    figures = [
        figure(4000),
        figure(4100),
        figure(4200, engine__zero_stage=0),
        figure(9000, "TFLOP/s"),
        figure(9000, ranks=2),
        figure(9000, data__image_size=96),
        figure(9000, target__kind="pixels"),
        figure(9000, engine__activation_checkpointing=True),
        figure(8000, "clips/s", data__frames=16),
        figure(9000, model__decoder="light", model__decoder_width=256, mask__ratio=0.5),
        figure(7000, model__decoder="light", model__decoder_width=256, mask__ratio=0.75),
        figure(9000, mask__repeats=4),
        {"unit": "images/s", "achieved": 9000, "settings": {}},
    ]
    file = tmp_path / "rates.json"
    file.write_text(json.dumps({"figures": figures}))
    assert measured_rate(file, recipe()) == 4100
    assert measured_rate(file, recipe("vit_base_300e", "engine.zero_stage=2")) == 4200
    assert measured_rate(file, recipe("vit_base_300e", "data.frames=16")) == 8000
    assert measured_rate(file, recipe("vit_base_300e", "model.decoder=light", "mask.ratio=0.75")) == 7000
    assert measured_rate(file, recipe("vit_base_300e", "mask.repeats=4")) == 9000
    with pytest.raises(ConfigError, match=r"with this target and mask\.repeats=2: measure it"):
        measured_rate(file, recipe("vit_base_300e", "mask.repeats=2"))
    with pytest.raises(ConfigError, match=r"with this target, decoder and mask\.ratio: measure it"):
        measured_rate(file, recipe("vit_base_300e", "model.decoder=light", "model.decoder_width=64", "mask.ratio=0.75"))
    with pytest.raises(
        ConfigError,
        match=r"have a rate of vit_large_patch16_224 at 224 px in bf16 with this target: measure it with",
    ):
        measured_rate(file, recipe("vit_large_1600e"))
    for nonsense in (b"[]", b"[" * 10**5, b"\xff" * 10**5):
        file.write_bytes(nonsense)
        with pytest.raises(ConfigError, match=r"was not written by scripts/bench\.py.{,400}$"):
            measured_rate(file, recipe())


def test_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """300 epochs of a million images of 100 kB at 1,000 images/s: 30 TB; on one GPU, which sends nothing, 83 hours."""
    command = ["vit_base_300e", "--gpus", "1", "8", "--images-per-second", "1000"]
    command += ["--samples", "1024000", "--image-bytes", "100000", "optim.batch_size=1024", "run.save_every=10000"]
    monkeypatch.setattr(sys, "argv", ["estimate.py", *command])
    assert main() == 0
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines["data"][1:3] == ["1,024,000", "images;"]
    assert lines["schedule"][1] == "300,000"
    assert lines["1"][8:10] == ["85.33", "85.3"]
    assert float(lines["8"][8]) == pytest.approx(85.33 / 8, rel=0.01)
    assert lines["read"][1:3] == ["30.7", "TB"]
    assert lines["3"][1:] == ["checkpoints", "of", "1.03", "GB"]
    assert lines["written"][1:] == ["30", "checkpoints,", "31", "GB"]


def test_json_has_the_numbers_of_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("vit_base_300e", "--gpus", "8", "--images-per-second", "2000")
    assert run_script(monkeypatch, "estimate.py", *asked, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert run_script(monkeypatch, "estimate.py", *asked) == 0
    (run,) = figures["runs"]
    row = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["8"])
    assert row.split()[1] == f"{run['inputs_per_gpu']:,}" == "256"
    assert run["compute_seconds"] == pytest.approx(256 / 2000)
    assert row.split()[8] == f"{run['seconds'] / 3600:,.2f}" and run["gpu_seconds"] == 8 * run["seconds"]
    assert figures["steps"] == round(300 * 1_281_167 / 2048)


def test_clips_and_the_videos_that_they_are_made_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """10 epochs of 1,024 videos of 1 MB, 4 clips of each, 64 clips a step: 640 steps, 41 s at 1,000 clips/s."""
    command = ["vit_base_video", "--gpus", "1", "--clips-per-second", "1000", "--samples", "1024", "--decode-ms", "50"]
    command += ["optim.batch_size=64", "optim.epochs=10", "optim.warmup_epochs=1", "--video-bytes", "1000000"]
    monkeypatch.setattr(sys, "argv", ["estimate.py", *command])
    assert main() == 0
    said = capsys.readouterr().out
    assert "one GPU   1,000 clips/s, 16,000 frames/s, measured: " in said
    assert "decoding  50.0 CPU cores a GPU at 50 ms a clip" in said
    assert "schedule  640 steps of 64 clips, 4 of each of 16 videos, ZeRO 1" in said
    row = next(line.split() for line in said.splitlines() if line.startswith("    1 "))
    assert row[1] == "64" and row[-4:] == ["1,000", "0.01", "0.0", "0.25"]  # 250 videos a second
    assert "read      0.0 TB of videos in all" in said


def test_views_and_the_images_that_they_are_made_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """10 epochs of 10,240 images of 10 MB, two crops under four masks each, 64 views a step: 12,800 steps."""
    command = ["vit_base_visible", "--gpus", "1", "--images-per-second", "1000", "--samples", "10240"]
    command += ["--decode-ms", "2", "--image-bytes", "10e6", "mask.repeats=4", "data.repeats=2"]
    command += ["optim.batch_size=64", "optim.epochs=10", "optim.warmup_epochs=1"]
    monkeypatch.setattr(sys, "argv", ["estimate.py", *command])
    assert main() == 0
    said = capsys.readouterr().out
    assert "GFLOP a view, forward" in said and "one GPU   1,000 views/s" in said and "views each" in said
    assert "decoding  0.5 CPU cores a GPU at 2 ms an image" in said
    assert "schedule  12,800 steps of 64 views, 8 of each of 8 images, ZeRO 1" in said
    row = next(line.split() for line in said.splitlines() if line.startswith("    1 "))
    assert row[-4:] == ["1,000", "0.23", "0.2", "1.25"]  # 125 images a second
    assert "read      1.0 TB of images in all" in said


def test_data_sets_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, notes in (([], 1), (["--samples", "3000"], 0)):
        assert run_script(monkeypatch, "estimate.py", "small", "data.shards=nowhere", *options) == 0
        assert capsys.readouterr().err.count("note: data sets are not read: give the number of samples") == notes
    recipe = tmp_path / "mixture.yaml"
    recipe.write_text("base: small\ndata: {mixture: {a: {shards: x}, b: {shards: y}}}\n")
    mixtures = (("small", "data.mixture={a: {shards: x}, b: {shards: y}}"), (recipe, "data.mixture.a.weight=3"))
    for command in mixtures:
        assert run_script(monkeypatch, "estimate.py", *command) == 0
        assert "note: data sets are not read" in capsys.readouterr().err


def test_a_mistake_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(monkeypatch, "estimate.py", "no_such") == 2
    refused = capsys.readouterr().err
    assert refused.startswith("error: no recipe 'no_such'") and refused.count("\n") == 1
