"""Runs on a mixture: killed ones resume bit for bit, on other ranks too; a changed mixture is refused in one line."""

import json
import shutil
from pathlib import Path

import pytest
from labelled import labelled_shards
from launching import (
    assert_same_weights,
    finetune,
    finetune_recipe,
    last_checkpoint,
    launch,
    launch_and_kill,
    losses,
    metrics,
    pretrain,
    trace,
)
from mixing import grey_shards, mixed
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.checkpoints.checkpoint import CheckpointError
from pipeline.cluster.world import join
from pipeline.data.errors import DataError
from pipeline.data.mixture import Mixture, mixture_of
from pipeline.measure import measure
from shards.manifest import Manifest

WEIGHTS = {"photos": 3, "art": 1}
SHORT = ("run.max_steps=10", "run.trace_samples=true", "run.save_every=4", "run.log_every=3", "optim.epochs=40")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two data sets, of 23 and of 11 images; in the first, image 4 is damaged, and in the second, image 0."""
    folder = tmp_path_factory.mktemp("sets")
    found = {
        "photos": grey_shards(folder, "bright", range(150, 173)),
        "art": grey_shards(folder, "dark", range(40, 51)),
    }
    for name, sample in (("photos", 4), ("art", 0)):
        manifest = Manifest.load(found[name])
        with Path(manifest.shard_location(manifest.shard[sample])).open("r+b") as tar:
            tar.seek(int(manifest.offset[sample]) + 10)
            tar.write(b"overwritten")
    return found


@pytest.fixture(scope="module")
def undisturbed(sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    launch("null", run, mixed(sets, WEIGHTS), *SHORT, "data.bad_share=0.5")
    return run


def order(sets: dict[str, Path]) -> Mixture:
    return mixture_of([Manifest.load(sets[name]).counts for name in ("art", "photos")], [1, 3], 0, 4, 8192, 16)


def test_a_killed_run_resumes_like_an_undisturbed_one(sets: dict[str, Path], undisturbed: Path, tmp_path: Path) -> None:
    options = (mixed(sets, WEIGHTS), *SHORT, "data.bad_share=0.5")
    launch_and_kill("null", tmp_path / "run", *options, when=tmp_path / "run/checkpoints/step-00000004")
    launch("null", tmp_path / "run", *options)
    assert losses(tmp_path / "run") == losses(undisturbed)
    assert_same_weights(tmp_path / "run", undisturbed)
    ranks = [trace(tmp_path / "run", rank) for rank in (0, 1)]
    plan = order(sets)
    assert all(ranks[0][step] + ranks[1][step] == plan.batch(step, 16).tolist() for step in range(10))
    for name in ("samples/art", "samples/photos", "bad_samples/art", "bad_samples/photos"):
        assert [line[name] for line in metrics(tmp_path / "run")] == [line[name] for line in metrics(undisturbed)]


def test_another_number_of_ranks_takes_the_same_steps(sets: dict[str, Path], undisturbed: Path, tmp_path: Path) -> None:
    pretrain("null", tmp_path / "run", mixed(sets, WEIGHTS), *SHORT, "data.bad_share=0.5", "engine.micro_batch=4")
    plan = order(sets)
    assert trace(tmp_path / "run") == {step: plan.batch(step, 16).tolist() for step in range(10)}
    for step, loss in losses(undisturbed).items():
        assert losses(tmp_path / "run")[step] == pytest.approx(loss, rel=1e-5)


def test_samples_and_bad_samples_are_counted_by_data_set(sets: dict[str, Path], undisturbed: Path) -> None:
    plan, board = order(sets), EventAccumulator(str(undisturbed / "tensorboard")).Reload()
    done, met = 0, []
    for line in metrics(undisturbed):
        ids = [sample for step in range(done, line["step"]) for sample in plan.batch(step, 16).tolist()]
        art = [sample for sample in ids if sample < 11]
        assert (line["samples/art"], line["samples/photos"]) == (len(art), len(ids) - len(art))
        assert (line["bad_samples/art"], line["bad_samples/photos"]) == (ids.count(0), ids.count(15))
        assert line["bad_samples"] == ids.count(0) + ids.count(15)
        done = line["step"]
        for name in ("samples/art", "bad_samples/photos"):
            assert [point.value for point in board.Scalars(f"reading/{name}") if point.step == done] == [line[name]]
        met += ids
    quarantined = [json.loads(line) for line in (undisturbed / "quarantine.jsonl").read_text().splitlines()]
    assert len(quarantined) == met.count(0) + met.count(15) > 4
    for line in quarantined:
        own, part = (0, "art") if line["id"] == 0 else (4, "photos")
        manifest = Manifest.load(sets[part])
        assert (line["data_set"], line["key"], line["path"]) == (part, manifest.key(own), manifest.path(own))
        assert line["shard"] == manifest.shard_names[manifest.shard[own]]


@pytest.fixture(scope="module")
def started(sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("started") / "run"
    pretrain("null", run, mixed(sets, WEIGHTS), "run.max_steps=1", "data.bad_share=0.5")
    return run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("weight", "data.mixture.art (share) was 1/4, now 2/5; data.mixture.photos (share) was 3/4, now 3/5)"),
        (
            "member",
            "data.mixture.art (manifest) was ART, now None; data.mixture.art (share) was 1/4, now None; data.mix",
        ),
        (
            "name",
            "data.mixture.pictures (manifest) was None, now PHOTOS; data.mixture.pictures (share) was None, now 3/4)",
        ),
        ("content", "data.mixture.art (manifest) was ART, now OTHER)"),
        ("shards", "data.shards (manifest) was None, now PHOTOS; mixture version was 1, now None)"),
    ],
)
def test_a_changed_mixture_is_refused_and_named(
    sets: dict[str, Path], started: Path, shards: Path, change: str, message: str
) -> None:
    photos, art = sets["photos"], sets["art"]
    mixtures = {
        "weight": mixed(sets, {"photos": 3, "art": 2}),
        "member": mixed({"photos": photos}, {"photos": 1}),
        "name": mixed({"pictures": photos, "art": art}, {"pictures": 3, "art": 1}),
        "content": mixed({"photos": photos, "art": shards}, WEIGHTS),
        "shards": f"data.shards={photos}",
    }
    with pytest.raises(CheckpointError) as error:
        pretrain("null", started, mixtures[change], "run.max_steps=2")
    for name, root in {"PHOTOS": photos, "ART": art, "OTHER": shards}.items():
        message = message.replace(name, Manifest.load(root).identity)
    text = str(error.value)
    assert message in text and "belongs to another run" in text and "\n" not in text


def test_a_data_set_may_move_and_weights_may_be_written_otherwise(
    sets: dict[str, Path], started: Path, tmp_path: Path
) -> None:
    shutil.copytree(sets["art"], tmp_path / "moved")
    moved = mixed({"art": tmp_path / "moved", "photos": sets["photos"]}, {"photos": 0.75, "art": 0.25})
    pretrain("null", started, moved, "run.max_steps=3", "data.bad_share=0.5")
    assert last_checkpoint(started).facts.step == 3


def test_a_run_of_a_mixture_is_measured_like_any_other(sets: dict[str, Path], started: Path, shards: Path) -> None:
    found = measure(started, last_checkpoint(started), [f"data.validation={shards}"], join())
    assert 0 < found["val_loss"] < 1


def test_labelled_data_sets_with_the_same_classes_are_mixed(tmp_path: Path) -> None:
    one = labelled_shards(tmp_path / "one", {"train": {"red": 12, "blue": 12}, "val": {"red": 6, "blue": 6}})
    two = labelled_shards(tmp_path / "two", {"train": {"red": 4, "blue": 20}})
    three = labelled_shards(tmp_path / "three", {"train": {"red": 4, "green": 4}})
    steps = ("run.max_steps=8", "optim.epochs=40")
    finetune("null", one["val"], tmp_path / "run", mixed({"a": one["train"], "b": two["train"]}), *steps)
    (line,) = [line for line in metrics(tmp_path / "run") if "val_top1" in line]
    assert line["samples/a"] + line["samples/b"] == 16
    assert json.loads((tmp_path / "run/classes.json").read_text()) == ["blue", "red"]
    with pytest.raises(DataError) as error:
        finetune("null", one["val"], tmp_path / "other", mixed({"a": one["train"], "c": three["train"]}), *steps)
    assert str(error.value) == (
        "data.mixture: a and c do not have the same classes (only one of them has 'blue'): build both from the same"
    )
    assert finetune_recipe("null", "val", tmp_path, mixed({"a": "x"})).data.labelled


def test_unlabelled_pretraining_does_not_ask_for_the_same_classes(tmp_path: Path) -> None:
    one = labelled_shards(tmp_path / "one", {"train": {"red": 12, "blue": 12}})["train"]
    other = labelled_shards(tmp_path / "other", {"train": {"green": 12}})["train"]
    pretrain("null", tmp_path / "run", mixed({"a": one, "b": other}), "run.max_steps=1")
    assert (metrics(tmp_path / "run")[0]["samples/a"], metrics(tmp_path / "run")[0]["samples/b"]) == (10, 6)
