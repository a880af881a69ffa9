"""Probes while a run trains: equal to scripts/probe.py, without a trace in the run, on any ranks and ZeRO stage."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from labelled import CLASSES, labelled_shards
from launching import assert_same_weights, launch, losses, metrics, pretrain, small_recipe
from mixing import mixed
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.encoders.timm_vit import TimmEncoder
from model.maskfeat import MaskFeat
from pipeline.build import build_model
from pipeline.cluster.phases import Phases
from pipeline.cluster.world import World, join
from pipeline.config import Recipe
from pipeline.data.batch import Batch
from pipeline.data.data_sets import DataSets
from pipeline.data.loader import Loader
from pipeline.data.request import Request
from pipeline.data.views import CENTRE
from pipeline.pretrain import task as pretraining
from pipeline.probe import features
from pipeline.probe.effective_rank import effective_rank
from pipeline.probe.features import load
from pipeline.probe.judge import Settings
from pipeline.probe.kept_crops import KeptCrops
from pipeline.probe.probe import Asked, probe
from pipeline.probe.run_probe import RunProbe, collapse
from shards.manifest import Manifest

PROBED = ("run.probe_every=2", "run.max_steps=4")
NUMBERS = ("probe_linear", "probe_knn", "attended_tokens", "attended_tokens_median", "effective_rank")
VISIBLE = (
    *("model.decoder=light", "model.decoder_width=32", "model.position_init=fixed"),
    *("mask.kind=random", "mask.ratio=0.5", "mask.repeats=2"),
)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Images in colours and much noise: 3 x 40 to train on, and 2 x 10 to validate."""
    parts = {"train": dict.fromkeys(CLASSES, 40), "validation": {"green": 10, "red": 10}}
    return labelled_shards(tmp_path_factory.mktemp("labelled"), parts)


@pytest.fixture(scope="module")
def run(labelled: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    pretrain(labelled["train"], run, f"data.validation={labelled['validation']}", *PROBED)
    return run


@pytest.fixture
def world() -> World:
    return join()


def probes(run: Path) -> dict[int, dict[str, float]]:
    """Return the numbers of all probes of a run by step, without their duration."""
    return {line["step"]: {name: line[name] for name in NUMBERS} for line in metrics(run) if "probe_linear" in line}


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_probed_run_is_the_same_run(stage: int, labelled: dict[str, Path], tmp_path: Path) -> None:
    settings = [f"data.validation={labelled['validation']}", f"engine.zero_stage={stage}", "run.max_steps=4"]
    pretrain(labelled["train"], tmp_path / "plain", *settings)
    pretrain(labelled["train"], tmp_path / "probed", *settings, "run.probe_every=2")
    assert losses(tmp_path / "plain") == losses(tmp_path / "probed")
    assert_same_weights(tmp_path / "plain", tmp_path / "probed")
    assert list(probes(tmp_path / "probed")) == [2, 4] and not probes(tmp_path / "plain")


def by_script(run: Path, validation: Path, out: Path) -> dict[str, float]:
    """Return the result of `scripts/probe.py` for the last checkpoint of a run."""
    probe(
        Asked(str(run), [f"data.validation={validation}"], None, False, [-1], "mean", CENTRE, out), Settings(), join()
    )
    (report,) = (json.loads(path.read_text()) for path in out.glob("step-*.json"))
    (layer,) = report["layers"].values()
    places = [load(place, 0, 1, torch.device("cpu")) for place in (out / "features").iterdir()]
    of_validation = min(places, key=lambda features: len(features.ids))
    return {
        "probe_linear": layer["linear"]["top1"],
        "probe_knn": layer["neighbours"][0]["top1"],
        "attended_tokens": report["attended_tokens"][-1],
        "attended_tokens_median": sorted(report["attended_tokens"])[(len(report["attended_tokens"]) - 1) // 2],
        "effective_rank": effective_rank(of_validation.values),
    }


@pytest.mark.parametrize(("stage", "variant"), [(0, ()), (2, ()), (2, VISIBLE)])
def test_a_probe_finds_what_the_script_finds(
    stage: int, variant: tuple[str, ...], labelled: dict[str, Path], tmp_path: Path
) -> None:
    """The script reads the checkpoint, which has the fp32 weights and not those that the run computes with."""
    data, precision = f"data.validation={labelled['validation']}", "engine.precision=bf16"
    options = [data, precision, f"engine.zero_stage={stage}", *PROBED, *variant, "optim.lr=0.1"]
    pretrain(labelled["train"], tmp_path / "run", *options)
    found = probes(tmp_path / "run")[4]
    for name, value in by_script(tmp_path / "run", labelled["validation"], tmp_path / "out").items():
        assert found[name] == pytest.approx(value, rel=1e-6), name


def test_boards_show_the_probes_beside_the_untrained_encoder(run: Path) -> None:
    board, untrained_board = (
        EventAccumulator(str(run / "tensorboard" / curve)).Reload() for curve in ("validation", "baseline-untrained")
    )
    for name in NUMBERS:
        shown = {event.step: event.value for event in board.Scalars(f"probes/{name.removeprefix('probe_')}")}
        assert shown == {step: pytest.approx(found[name]) for step, found in probes(run).items()}
    (untrained,) = untrained_board.Scalars("probes/linear")
    assert untrained.step == 0 and 0 <= untrained.value <= 1


def test_a_resumed_run_probes_the_same(run: Path, labelled: dict[str, Path], tmp_path: Path) -> None:
    validation = f"data.validation={labelled['validation']}"
    for steps in (3, 4):
        pretrain(labelled["train"], tmp_path / "run", validation, "run.probe_every=2", f"run.max_steps={steps}")
    found = probes(tmp_path / "run")
    assert {step: found[step] for step in (2, 4)} == probes(run)
    assert losses(tmp_path / "run") == losses(run)


def test_two_ranks_find_what_one_finds(run: Path, labelled: dict[str, Path], tmp_path: Path) -> None:
    """With the weights in pieces, too."""
    settings = (f"data.validation={labelled['validation']}", "engine.zero_stage=3", "run.max_steps=4")
    launch(labelled["train"], tmp_path / "run", *settings, "run.probe_every=2")
    launch(labelled["train"], tmp_path / "plain", *settings)
    assert losses(tmp_path / "plain") == losses(tmp_path / "run")
    assert_same_weights(tmp_path / "plain", tmp_path / "run")
    found = probes(tmp_path / "run")
    assert found.keys() == probes(run).keys()
    for step, numbers in probes(run).items():
        assert found[step] == {name: pytest.approx(value, rel=1e-4) for name, value in numbers.items()}


def test_samples_are_read_once_as_far_as_there_is_room(
    labelled: dict[str, Path], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, data = Manifest.load(labelled["train"]), small_recipe(labelled["train"], Path("unused")).data
    read: list[int] = []
    batches = Loader.batches

    def counting(loader: Loader, requests: Iterable[Request]) -> Iterator[Batch]:
        for batch in batches(loader, requests):
            read.extend(batch.request.ids.tolist())
            yield batch

    monkeypatch.setattr(Loader, "batches", counting)
    monkeypatch.setattr(features, "BATCH", 16)
    ids = np.arange(0, 120, 3)  # in batches of 16, 16 and 8
    of_batch = 16 * 3 * 32 * 32
    for most, again in ((10 * of_batch, []), (of_batch, ids[16:].tolist())):
        crops = KeptCrops(manifest, ids, data, CENTRE, world, most)
        first = list(crops.batches())
        assert read == ids.tolist() == torch.cat([own for own, _ in first]).tolist()
        read.clear()
        for (own, inputs), (same_ids, same) in zip(first, crops.batches(), strict=True):
            assert torch.equal(own, same_ids) and torch.equal(inputs, same)
        assert read == again
        read.clear()


def test_bad_samples_are_left_out(tmp_path: Path, world: World) -> None:
    shards = labelled_shards(tmp_path, {"train": dict.fromkeys(CLASSES, 8)})["train"]
    manifest, data = Manifest.load(shards), small_recipe(shards, tmp_path / "run").data
    with Path(manifest.shard_location(0)).open("r+b") as file:
        file.seek(int(manifest.offset[5]) + 40)
        file.write(b"damaged")
    crops = KeptCrops(manifest, np.arange(24), data, CENTRE, world)
    for _ in range(2):
        ids, inputs = (torch.cat(parts) for parts in zip(*crops.batches(), strict=True))
        assert ids.tolist() == [sample for sample in range(24) if sample != 5] and len(inputs) == 23


def test_the_effective_rank_counts_directions() -> None:
    rng = np.random.default_rng(0)
    same = torch.ones(50, 8) * torch.arange(1, 51)[:, None]
    assert effective_rank(same) == pytest.approx(1)
    assert effective_rank(torch.eye(8).repeat(5, 1)) == pytest.approx(8)
    features = rng.normal(size=(40, 6)) * [9, 3, 1, 1, 0.1, 0]
    values = np.linalg.svd(features, compute_uv=False)
    shares = values[values > 1e-9] / values.sum()
    assert effective_rank(torch.tensor(features).float()) == pytest.approx(
        np.exp(-(shares * np.log(shares)).sum()), 1e-4
    )
    for number in (
        math.nan,
        math.inf,
    ):  # as where activations overflow, which is no reason to end a run
        assert math.isnan(effective_rank(torch.tensor([[1.0, 2.0], [number, 1.0]])))


@pytest.mark.parametrize("blocks", [(0, 1, 2), (0, 1)])
def test_a_collapse_of_attention_is_told(
    blocks: tuple[int, ...],
    labelled: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Queries and keys that are thousands of times as large make a softmax one-hot, here in all or most blocks."""
    build = pretraining.build_model

    def collapsed(recipe: Recipe) -> MaskFeat:
        model = build(recipe)
        with torch.no_grad():
            for block in (model.encoder.blocks[number] for number in blocks):
                block.attn.qkv.weight[:64] *= 1000
        return model

    monkeypatch.setattr(pretraining, "build_model", collapsed)
    deeper = "model.options={embed_dim: 32, depth: 3, num_heads: 1}"
    pretrain(labelled["train"], tmp_path / "run", f"data.validation={labelled['validation']}", *PROBED, deeper)
    for found in probes(tmp_path / "run").values():
        assert found["attended_tokens_median"] < 1.5 and (found["attended_tokens"] < 1.5) == (2 in blocks)
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: attention")]
    assert len(warnings) == 2 and "lower optim.lr" in warnings[0]


def test_attention_that_is_spread_is_not_warned_of(run: Path) -> None:
    assert all(collapse(found) is None for found in probes(run).values())
    assert collapse({"attended_tokens_median": 1.99}) and not collapse({"attended_tokens_median": 2.0})
    assert not collapse({"attended_tokens_median": math.nan})


@pytest.mark.parametrize(
    ("missing", "why"),
    [
        ("labels", "have no label"),
        ("classes", "the data sets of data.mixture have no labels, or different classes"),
        ("validation", "data.validation is not set"),
        ("samples", "are too few"),
    ],
)
def test_a_run_that_cannot_be_probed_says_so_once_and_trains(
    missing: str, why: str, labelled: dict[str, Path], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {"labels": shards, "classes": "null"}.get(missing, labelled["train"])
    given = {
        "classes": [
            f"data.validation={labelled['validation']}",
            mixed({"a": labelled["train"], "b": labelled["validation"]}),
        ],
        "labels": [f"data.validation={shards}"],
        "validation": [],
        "samples": [f"data.validation={labelled['validation']}", "run.probe_samples=19"],
    }
    pretrain(training, tmp_path / "run", *PROBED, *given[missing])
    notes = [line for line in capsys.readouterr().out.splitlines() if "run.probe_every" in line]
    assert len(notes) == 1 and notes[0].startswith("note: ") and why in notes[0]
    assert len(losses(tmp_path / "run")) == 4 and not probes(tmp_path / "run")


def test_so_many_samples_are_used(labelled: dict[str, Path], tmp_path: Path, world: World) -> None:
    """They are spread evenly, whatever the order of the set."""
    recipe = small_recipe(labelled["train"], tmp_path, "run.probe_samples=30", "run.probe_every=1")
    sets = [Manifest.load(labelled[part]) for part in ("train", "validation")]
    found = RunProbe(recipe, build_model(recipe).encoder, *sets, world, Phases(tmp_path, 0, 600))
    banked = [of for ids, _ in found._bank.batches() for of in ids.tolist()]
    asked = [of for ids, _ in found._queries.batches() for of in ids.tolist()]
    assert banked == list(range(0, 120, 4)) and asked == list(range(20))


def test_samples_without_a_label_are_left_out(
    labelled: dict[str, Path], shards: Path, tmp_path: Path, world: World
) -> None:
    """Also in the validation set, and where a whole data set of a mixture has none."""
    recipe = small_recipe("null", tmp_path, mixed({"a": shards, "b": labelled["train"]}), "run.probe_every=1")
    training, validation = DataSets(recipe.data).manifest, Manifest.load(labelled["validation"])
    first, classes = len(training) - 120, validation.classes
    assert training.classes == [*CLASSES] and (training.label[:first] == -1).all()
    some = np.array([label if sample not in (3, 17) else -1 for sample, label in enumerate(validation.label)])
    validation = replace(validation, label=some.astype(validation.label.dtype))
    found = RunProbe(recipe, build_model(recipe).encoder, training, validation, world, Phases(tmp_path, 0, 600))
    banked, asked = ([of for ids, _ in kept.batches() for of in ids.tolist()] for kept in (found._bank, found._queries))
    assert banked == list(range(first, first + 120)) and asked == [of for of in range(20) if of not in (3, 17)]
    named = [training.classes[label] for label in found._labels[1][asked]]
    assert named == [classes[label] for label in validation.label[asked]]


@pytest.mark.parametrize("wrong", ["samples", "encoder"])
def test_a_probe_that_fails_is_a_note_and_the_run_continues(
    wrong: str,
    labelled: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Say each time that too few training samples are good, and once that the encoder cannot be probed."""

    def refuse(*_: object) -> None:
        raise ValueError("this attention cannot be read: set run.probe_every=null")

    if wrong == "encoder":
        monkeypatch.setattr(TimmEncoder, "attention", refuse)
    else:
        every = KeptCrops.batches
        monkeypatch.setattr(KeptCrops, "batches", lambda crops: [(ids[:5], of[:5]) for ids, of in every(crops)][:1])
    pretrain(labelled["train"], tmp_path / "run", f"data.validation={labelled['validation']}", *PROBED)
    notes = [line for line in capsys.readouterr().out.splitlines() if "run.probe_every" in line]
    if wrong == "encoder":
        assert len(notes) == 1 and "the encoder is not probed: this attention cannot be read" in notes[0]
    else:
        assert len(notes) == 3 and "no probes after step 4: 5 good training samples" in notes[-1]
    assert len(losses(tmp_path / "run")) == 4 and not probes(tmp_path / "run")
