"""Fine-tuning: it learns, accuracy counts every image once, a stop costs nothing, and exports are plain timm."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from labelled import CLASSES, labelled_shards
from launching import FINETUNE, SMALL, finetune, finetune_recipe, free_port, last_checkpoint, pretrain
from PIL import Image
from ranks import Ranks
from safetensors.torch import save_file
from scripting import run_script

from pipeline.checkpoints.checkpoint import AVERAGE, CheckpointError
from pipeline.cluster.world import World, join
from pipeline.data.loader import Loader
from pipeline.data.request import centre_requests
from pipeline.finetune.build import build_classifier
from pipeline.finetune.config import FinetuneRecipe
from pipeline.finetune.task import Finetuning
from pipeline.pixels import normalise
from pipeline.report.charts import curve_of
from pipeline.settings import ConfigError
from pipeline.train.engine import Engine
from pipeline.train.state import averaged, capture, set_weights
from shards.manifest import Manifest


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Noisy images in three colours: 3 x 16 to train on; to validate 13 of two colours, in another order."""
    parts = {"train": dict.fromkeys(CLASSES, 16), "validation": {"red": 7, "green": 6}}
    return labelled_shards(tmp_path_factory.mktemp("labelled"), parts)


@pytest.fixture
def world() -> World:
    return join()


def small(labelled: dict[str, Path], run: Path, *overrides: str) -> FinetuneRecipe:
    return finetune_recipe(labelled["train"], labelled["validation"], run, *overrides)


def logged(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (0, "bf16"), (1, "bf16"), (2, "fp32"), (1, "fp16")])
def test_the_average_follows_the_weights_and_stays_where_they_do(
    labelled: dict[str, Path], tmp_path: Path, world: World, stage: int, precision: str
) -> None:
    recipe = small(labelled, tmp_path, f"engine.zero_stage={stage}", f"engine.precision={precision}")
    torch.manual_seed(0)
    model = build_classifier(recipe, 3)
    exact = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    engine = Engine(model, recipe.engine, recipe.optim, recipe.micro_batch(world.size), world, 3.0, average=0.9)
    set_weights(engine, exact)

    def states(part: str) -> dict[str, torch.Tensor]:
        found = {name: tensor.clone() for name, tensor in capture(engine, world)}
        return {name.partition("/")[2]: tensor for name, tensor in found.items() if name.startswith(f"{part}/")}

    expected = exact
    images = torch.randn(4, 3, 32, 32).to(engine.dtype)
    labels = torch.tensor([0, 1, 2, 0])
    for step in range(4):
        engine.schedule.step_update(5 + step)
        loss = torch.nn.functional.cross_entropy(engine.predict(images).float(), labels)
        engine.backward(loss * (torch.inf if step == 2 else 1))
        skipped = engine.skipped_steps(step)
        engine.update()
        weights = states("weight")
        if engine.skipped_steps(step + 1) == skipped:
            expected = {name: 0.9 * expected[name] + 0.1 * weights[name] for name in weights}
        else:
            assert step == 2 or precision == "fp16"  # which looks for its scale
    assert engine.skipped_steps(4) >= 1
    assert any(not torch.equal(weights[name], exact[name]) for name in weights)
    for name, average in states(AVERAGE).items():
        torch.testing.assert_close(average, expected[name], rtol=1e-5, atol=1e-7)

    engine.deepspeed.eval()
    before = engine.predict(images)
    with averaged(engine):
        within = engine.predict(images)
        plain = build_classifier(recipe, 3).eval()
        plain.load_state_dict(expected)
        torch.testing.assert_close(within, plain.to(engine.dtype)(images), rtol=2e-2, atol=2e-5)
    assert torch.equal(engine.predict(images), before) and not torch.equal(within, before)


@pytest.fixture(scope="module")
def undisturbed(labelled: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    finetune(labelled["train"], labelled["validation"], run, "optim.average=0.8")
    return run


def test_learns_to_tell_the_classes(undisturbed: Path) -> None:
    first, *_, last = (line for line in logged(undisturbed) if "val_loss" in line)
    assert last["val_top1"] == 1 and last["val_loss"] < 0.4 < first["val_loss"]
    assert last["val_top1_ema"] == 1


def test_the_average_is_shown_as_a_curve_of_its_own_and_reported(
    undisturbed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    of_average = {curve_of(metric) for metric in logged(undisturbed)[-1]} & {
        (chart, "average") for chart in ("loss", "metrics/top1", "metrics/top5")
    }
    assert len(of_average) == 3
    assert (undisturbed / "tensorboard" / "average").is_dir()
    assert run_script(monkeypatch, "report.py", undisturbed) == 0
    assert "top-1 of the average 100.0%, top-5 of the average 100.0%" in capsys.readouterr().out


def test_accuracy_is_that_of_the_saved_weights_on_each_image_once(
    labelled: dict[str, Path], undisturbed: Path, world: World
) -> None:
    """Against timm's own model on the crops, without any part of training or validation."""
    recipe = small(labelled, undisturbed)
    model = build_classifier(recipe, 3).eval()
    found = last_checkpoint(undisturbed)
    with found.tensors() as tensors:
        average = {name.partition("/")[2]: tensors[name] for name in tensors.names if name.startswith(f"{AVERAGE}/")}
    manifest = Manifest.load(str(labelled["validation"]))
    loader = Loader(manifest, recipe.data, 13, world.device)
    (batch,) = loader.batches(centre_requests(manifest, recipe.data, 0, 13, 13, 224 / 256))
    names = ["blue", "green", "red"]
    truth = torch.tensor([names.index(manifest.classes[label]) for label in manifest.label])
    for weights, suffix in ((found.weights(), ""), (average, "_ema")):
        model.load_state_dict(weights)
        with torch.no_grad():
            logits = model.encoder(normalise(batch.inputs, torch.float32))
        metrics = logged(undisturbed)[-1]
        assert metrics[f"val_top1{suffix}"] == pytest.approx(float((logits.argmax(1) == truth).double().mean()))
        loss = torch.nn.functional.cross_entropy(logits, truth)
        assert metrics[f"val_loss{suffix}"] == pytest.approx(float(loss), rel=1e-4)

    with (undisturbed / "confusion.csv").open() as file:
        header, *rows = csv.reader(file)
    table = np.array([row[1:] for row in rows], dtype=int)
    assert header[1:] == names and [row[0] for row in rows] == names
    for row, column in np.ndindex(3, 3):
        assert table[row, column] == ((truth == row) & (logits.argmax(1) == column)).sum()
    assert (undisturbed / "pictures" / "step-00000060.png").exists()


def test_a_run_on_images_is_measured_afterwards(undisturbed: Path, tmp_path: Path) -> None:
    ranks = Ranks(1, [str(undisturbed)], tmp_path / "said", free_port(), "scripts/validate.py")
    assert ranks.wait(240) == [0], ranks.said()[-3000:]
    last = logged(undisturbed)[-1]
    assert f"step 60: top1_1x1 {last['val_top1']:.4g}, top5_1x1 {last['val_top5']:.4g}\n" in ranks.said()


@pytest.mark.parametrize("stop", [7])
def test_resumed_equals_undisturbed_bit_for_bit(
    labelled: dict[str, Path], undisturbed: Path, tmp_path: Path, stop: int
) -> None:
    """Weights, moments, average and what was logged, under mixup, CutMix, RandAugment, erasing and drop path."""
    run = tmp_path / "run"
    sets = (labelled["train"], labelled["validation"], run, "optim.average=0.8")
    finetune(*sets, f"run.max_steps={stop}")
    finetune(*sets)
    with last_checkpoint(undisturbed).tensors() as one, last_checkpoint(run).tensors() as other:
        assert sorted(one.names) == sorted(other.names) and any(name.startswith("ema/") for name in one.names)
        assert all(torch.equal(one[name], other[name]) for name in one.names)
    kept = ("step", "loss", "val_loss", "val_top1", "val_loss_ema", "lr")
    lives = [
        {line["step"]: [line.get(key) for key in kept] for line in logged(folder)} for folder in (undisturbed, run)
    ]
    assert {step: line for step, line in lives[1].items() if step != stop} == {
        step: line for step, line in lives[0].items() if step != stop
    }


def test_two_ranks_count_each_validation_image_once(labelled: dict[str, Path], tmp_path: Path) -> None:
    """13 images do not go evenly into two ranks' batches. Without what is random by rank, losses agree too."""
    plain = ("augment.mixup=0", "augment.cutmix=0", "augment.erasing=0", "run.max_steps=6", "run.eval_every=3")
    still = (*plain, "model.options={embed_dim: 32, depth: 2, num_heads: 1}")
    one, two = tmp_path / "one", tmp_path / "two"
    finetune(labelled["train"], labelled["validation"], one, *still)
    data = [f"data.shards={labelled['train']}", f"data.validation={labelled['validation']}", f"run.dir={two}"]
    settings = ["small", *SMALL, *FINETUNE, *data, *still, "engine.zero_stage=2"]
    ranks = Ranks(2, settings, tmp_path / "said", free_port(), "scripts/finetune.py")
    assert ranks.wait(240) == [0, 0], ranks.said()[-3000:]
    for mine, theirs in zip(logged(one), logged(two), strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], abs=1e-5)
        if "val_top1" in mine:
            assert theirs["val_top1"] == mine["val_top1"] and theirs["val_top5"] == 1
            assert theirs["val_loss"] == pytest.approx(mine["val_loss"], abs=1e-5)


def test_a_bad_image_and_the_one_it_was_mixed_with_do_not_count(
    labelled: dict[str, Path], tmp_path: Path, world: World
) -> None:
    from pipeline.cluster.phases import Phases
    from pipeline.data.exact import ExactData
    from pipeline.data.training_data import Part

    recipe = small(labelled, tmp_path)
    data = ExactData(recipe.data, Part(recipe.optim.batch_size, 16, 0, world.device))
    with Phases(tmp_path, 0, 60) as phases:
        task = Finetuning(recipe, data, world, phases)
        batch = next(data.batches(0, 1))
        batch.weights[3] = 0
        torch.manual_seed(5)
        pixels, shares, weights = task.prepare(batch)
    assert weights.tolist() == [0 if place in (3, 12) else 1 for place in range(16)]
    assert pixels.shape == (16, 3, 32, 32) and shares.shape == (16, 3)
    torch.testing.assert_close(shares.sum(1), torch.ones(16))
    labels = torch.from_numpy(data.manifest.label.astype(np.int64))[torch.from_numpy(batch.request.ids)]
    own, other = (torch.nn.functional.one_hot(of, 3) * 0.9 + 0.1 / 3 for of in (labels, labels.flip(0)))
    mixed = labels != labels.flip(0)
    lam = ((shares - other) / (own - other))[mixed]
    lam = lam[lam.isfinite()]
    torch.testing.assert_close(lam, lam[0].expand_as(lam), rtol=1e-3, atol=1e-3)  # one share for the batch
    assert 0 <= lam[0] <= 1


@pytest.mark.parametrize("average", [False, True])
def test_the_exported_classifier_is_plain_timms(
    labelled: dict[str, Path], undisturbed: Path, tmp_path: Path, average: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its accuracy, by timm's own preprocessing of the image files, is the one that the run logged."""
    options = ["--average"] if average else []
    assert run_script(monkeypatch, "export.py", undisturbed, tmp_path / "out", *options) == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    names = model.pretrained_cfg["label_names"]
    folder = labelled["validation"].with_name("validation")
    hits = 0
    for path in sorted(folder.glob("*/*.png")):
        with torch.no_grad():
            logits = model(transform(Image.open(path).convert("RGB"))[None])
        hits += names[int(logits.argmax())] == path.parent.name
    metrics = logged(undisturbed)[-1]
    assert hits / 13 == metrics["val_top1_ema" if average else "val_top1"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| {hits / 13:.2%} |" in card and ("moving average" in card) == average
    step = last_checkpoint(undisturbed).facts.step
    assert f"| weights | {'moving average' if average else 'those'} of step {step} |" in card


def test_a_folder_of_pre_training_is_not_fine_tuned_in(labelled: dict[str, Path], tmp_path: Path) -> None:
    pretrain(labelled["train"], tmp_path / "run", "run.max_steps=1")
    with pytest.raises(CheckpointError, match=r"run\.kind was pretrain, now finetune\): choose"):
        finetune(labelled["train"], labelled["validation"], tmp_path / "run", "run.max_steps=2")


def test_compare_reads_what_probes_and_runs_wrote(
    labelled: dict[str, Path],
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_script(monkeypatch, "compare.py", tmp_path) == 1
    empty = capsys.readouterr().err
    assert "has no probe/KIND/*.json" in empty and empty.count("\n") == 1
    pretrain(labelled["train"], tmp_path / "run", "run.max_steps=2", f"data.validation={labelled['validation']}")
    capsys.readouterr()
    for kind in ("scratch", "hog", "pixels"):
        # The first block is the better one on held-out images; what is best on validation must not decide
        layers = {str(block): _probe(linear, own) for block, linear, own in ((0, 0.5, 0.75), (1, 0.625, 0.25))}
        (tmp_path / "probe" / kind).mkdir(parents=True)
        (tmp_path / "probe" / kind / "step.json").write_text(json.dumps({"layers": layers}))
        for folder, run in (("finetune", undisturbed), ("pretrain", tmp_path / "run")):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / (f"{kind}-0" if folder == "finetune" else kind)).symlink_to(run)
    assert run_script(monkeypatch, "compare.py", tmp_path) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    probes_and_tuning = ["62.5", "12.5", "0", "50.0", "12.5", "100.0", "100.0"]
    assert rows["none"] == probes_and_tuning
    epochs, rate, step_ms, *accuracies = rows["HOG"]
    assert epochs == "20" and accuracies == probes_and_tuning
    assert float(rate) * float(step_ms) == pytest.approx(1000 * 16, rel=0.1)  # both are rounded
    assert Image.open(tmp_path / "results.png").size == (1320, 960)


def _probe(linear: float, held_out: float) -> dict[str, object]:
    rates = [{"rate": 0.1, "held_out_top1": held_out}, {"rate": 1.0, "held_out_top1": 0.0}]
    return {"linear": {"rate": 0.1, "top1": linear, "rates": rates}, "neighbours": [{"k": 20, "top1": 0.125}]}


def test_mistakes_are_told(labelled: dict[str, Path], shards: Path, tmp_path: Path) -> None:
    train, validation = labelled["train"], labelled["validation"]
    with pytest.raises(ConfigError, match="have no label"):
        finetune(shards, validation, tmp_path / "a")
    with pytest.raises(ConfigError, match="odd number"):
        finetune(train, validation, tmp_path / "b", "optim.batch_size=15")
    pretrain(train, tmp_path / "c", "run.max_steps=1")
    with pytest.raises(ConfigError, match=r"is a run: .*maskfeat export"):
        finetune(train, validation, tmp_path / "d", f"model.init={tmp_path / 'c'}")
    with pytest.raises(CheckpointError, match="belongs to another run"):
        finetune(train, validation, tmp_path / "c")
    save_file({"patch_embed.proj.weight": torch.zeros(2, 3, 16, 16)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"model.init: .*missing"):
        finetune(train, validation, tmp_path / "e", f"model.init={tmp_path / 'other.safetensors'}")
    with pytest.raises(ConfigError, match=r"optim.average needs unpartitioned weights"):
        small(labelled, tmp_path, "engine.zero_stage=3", "optim.average=0.9")
