"""Runs on images and videos: killed ones resume bit for bit, on other ranks too; losses and pictures of each medium."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from launching import (
    assert_same_weights,
    launch,
    launch_and_kill,
    losses,
    metrics,
    pretrain,
    small_recipe,
    trace,
    train,
)
from making_videos import encoded, film
from mixing import grey_shards, mixed
from scripting import run_script

from pipeline.build import build_examples, build_model
from pipeline.checkpoints.checkpoint import newest
from pipeline.cluster.phases import Phases
from pipeline.cluster.world import join
from pipeline.data.errors import DataError
from pipeline.data.mixture import mixture_of
from pipeline.doctor.examine import inputs_of
from pipeline.measure import measure
from pipeline.pretrain.evaluate import MEAN_BATCHES, Validation, best_constant
from pipeline.settings import ConfigError
from pipeline.train.setup import open_data
from shards.build import build
from shards.manifest import Manifest

WEIGHTS = {"photos": 2, "art": 1, "clips": 3}
CLIPS = ("data.image_size=64", "data.frames=4", "data.sampling=stride", "data.stride=2", "data.flip=false")
SHORT = (*CLIPS, "run.max_steps=8", "run.trace_samples=true", "run.save_every=3", "optim.epochs=40")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, video_shards: Path) -> dict[str, Path]:
    """Images, 23 bright and 11 dark ones, and 22 videos."""
    folder = tmp_path_factory.mktemp("sets")
    bright, dark = grey_shards(folder, "bright", range(150, 173)), grey_shards(folder, "dark", range(40, 51))
    return {"photos": bright, "art": dark, "clips": video_shards}


@pytest.fixture(scope="module", params=["paper", "light"])
def variant(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """MaskFeat as published, and encoding visible tubelets only, with two masks of each input, at ZeRO 3."""
    if request.param == "paper":
        return ()
    visible = ("model.decoder=light", "model.decoder_width=32", "mask.kind=random", "mask.ratio=0.5")
    return (*visible, "mask.repeats=2", "model.position_init=fixed", "engine.zero_stage=3")


@pytest.fixture(scope="module")
def undisturbed(sets: dict[str, Path], variant: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    launch("null", run, mixed(sets, WEIGHTS), *SHORT, *variant)
    return run


def test_a_killed_run_resumes_like_an_undisturbed_one(
    sets: dict[str, Path], variant: tuple[str, ...], undisturbed: Path, tmp_path: Path
) -> None:
    options = (mixed(sets, WEIGHTS), *SHORT, *variant)
    launch_and_kill("null", tmp_path / "run", *options, when=tmp_path / "run/checkpoints/step-00000003")
    launch("null", tmp_path / "run", *options)
    assert losses(tmp_path / "run") == losses(undisturbed)
    assert_same_weights(tmp_path / "run", undisturbed)
    ranks = [trace(tmp_path / "run", rank) for rank in (0, 1)]
    counts = [Manifest.load(sets[name]).counts for name in ("art", "photos", "clips")]
    samples = 8 if variant else 16
    plan = mixture_of(counts, [1, 2, 3], 0, 4, 8192, samples, ["image", "image", "video"])
    batches = [ranks[0][step] + ranks[1][step] for step in range(8)]
    assert batches == [plan.batch(step, samples).tolist() for step in range(8)]
    assert {min(batch) >= 34 for batch in batches} == {True, False}


def test_another_number_of_ranks_takes_the_same_steps(
    sets: dict[str, Path], variant: tuple[str, ...], undisturbed: Path, tmp_path: Path
) -> None:
    """With micro-batches of another size, too."""
    launch("null", tmp_path / "run", mixed(sets, WEIGHTS), *SHORT, *variant, "engine.micro_batch=4", ranks=1)
    for step, loss in losses(undisturbed).items():
        assert losses(tmp_path / "run")[step] == pytest.approx(loss, rel=1e-5)


def test_losses_and_frames_are_those_of_a_steps_medium(undisturbed: Path) -> None:
    for line in metrics(undisturbed):
        medium, frames = ("video", 4) if line["samples/clips"] else ("image", 1)
        assert line[f"loss/{medium}"] == line["loss"] and len([name for name in line if name.startswith("loss/")]) == 1
        read = line.get("samples_per_second", line["images_per_second"])  # each under two masks
        assert line["frames_per_second"] == pytest.approx(frames * read)
        assert bool(line["samples/clips"]) != bool(line["samples/art"] + line["samples/photos"])


def test_each_medium_is_validated(
    sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By losses, baselines and pictures of its own; the loss between two logs is that of all inputs. With an MViT."""
    run = tmp_path / "run"
    validation = (f"data.validation={sets['clips']}", f"data.validation_images={sets['photos']}")
    steps = ("run.max_steps=6", "run.log_every=6", "run.eval_every=6")
    mvit = ("model.name=mvit_v2", "model.position_init=random", "model.options={embed_dim: 8, depth: 2, stages: [1]}")
    pretrain("null", run, mixed(sets, WEIGHTS), *CLIPS, *mvit, *validation, *steps)
    (line,) = metrics(run)
    assert line["loss"] == pytest.approx((line["loss/image"] + line["loss/video"]) / 2)
    assert line["frames_per_second"] == pytest.approx(2.5 * line["images_per_second"])
    assert line["val_bad_samples"] == line["val_images_bad_samples"] == 0
    of_videos, of_images = (
        json.loads((run / name).read_text()) for name in ("baselines.json", "baselines-images.json")
    )
    assert "copy" in of_videos and "copy" not in of_images
    found = newest(run / "checkpoints", report=print)
    assert found
    for name, known, root in (("val_loss", of_videos, sets["clips"]), ("val_images_loss", of_images, sets["photos"])):
        measured = measure(run, found, [f"data.validation={root}", "data.validation_images=null"], join())
        assert measured["val_loss"] == pytest.approx(line[name], rel=1e-6)
        assert measured["zero"] == pytest.approx(known["zero"]) and measured["mean"] == pytest.approx(known["mean"])
        assert line[name] < known["untrained"] < 1
    pictures = {path.name for path in (run / "pictures").iterdir()}
    assert pictures == {f"step-0000000{step}{name}" for step in (0, 6) for name in (".png", ".gif", "-images.png")}
    assert f"val of images {line['val_images_loss']:.4f}" in capsys.readouterr().out
    assert run_script(monkeypatch, "export.py", run, tmp_path / "out") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "images as clips of one frame" in card
    assert f"| validation loss of images at step 6 | {line['val_images_loss']:.4f} |" in card
    assert f"| validation loss of images, predicting zero | {of_images['zero']:.4f} |" in card
    capsys.readouterr()
    assert run_script(monkeypatch, "report.py", run) == 0
    told = capsys.readouterr().out
    for name in (".png", ".gif", "-images.png"):
        assert f"{run}/pictures/step-00000006{name}\n" in told
    _, of_clips, of_photos = re.split("validation loss(?: of images)? ", told)
    assert f"{line['val_loss']:.4f}" in of_clips and f"{line['val_images_loss']:.4f}" in of_photos
    assert "copying the nearest visible frame" in of_clips and "copying" not in of_photos


def test_the_encoder_is_probed_on_the_videos(
    videos: Path, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The untrained encoder, in a mixture and alone; and the trained one."""
    files = sorted(file for file in videos.rglob("*") if file.is_file())
    for place, file in enumerate(files):
        (folder := tmp_path / "videos" / f"class-{place % 2}").mkdir(parents=True, exist_ok=True)
        (folder / file.name).symlink_to(file)
    labelled = tmp_path / "labelled"
    build(tmp_path / "videos", labelled, samples_per_shard=5, workers=1)
    probed = (f"data.validation={labelled}", "run.probe_every=2", "run.max_steps=2", *CLIPS)
    said = []
    for name, data in (("alone", labelled), ("mixed", "null")):
        mixture = [mixed({"photos": sets["photos"], "clips": labelled})] if name == "mixed" else []
        pretrain(data, tmp_path / name, *probed, *mixture)
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "untrained encoder" in line]
        said.append(line.partition(" (")[0])
    assert said[0] == said[1] and "k-NN" in said[0]
    assert 0 <= metrics(tmp_path / "mixed")[-1]["probe_linear"] <= 1
    pretrain("null", tmp_path / "images", mixed(sets), f"data.validation={sets['photos']}", *probed[1:])
    assert "it is probed on the videos: set data.validation to videos" in capsys.readouterr().out


def test_the_mean_target_of_a_medium_is_that_of_its_training_inputs(sets: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = small_recipe("null", run, mixed(sets, WEIGHTS), *CLIPS, f"data.validation={sets['photos']}")
    train(recipe.model_copy(update={"run": recipe.run.model_copy(update={"max_steps": 1})}))
    world = join()
    examples = build_examples(recipe, build_model(recipe), torch.float32, world.device, single_frames=True)
    phases = Phases(run, 0, 100)
    validation = Validation(str(sets["photos"]), recipe.data, recipe.run, 16, world, examples, phases)
    data = open_data(recipe, world)
    of_images, of_both = (
        validation.constants(best_constant(examples, data.batches(0, MEAN_BATCHES, medium), world))["mean"]
        for medium in ("image", None)
    )
    data.close()
    known = json.loads((run / "baselines.json").read_text())["mean"]
    assert known == pytest.approx(of_images, rel=1e-6) and of_both > 1.001 * of_images


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mask.kind=frame"], "mask.kind=frame hides whole frames, and the images of data.mixture have one: leave out"),
        (["data.image_size=32"], "mask.ratio=0.4 leaves nothing to predict of a 1x1 grid"),
        (["data.validation_images=VIDEOS"], "data.validation_images=VIDEOS has videos: set data.validation to them"),
    ],
)
def test_what_cannot_be_trained_on_both_is_one_line(
    sets: dict[str, Path], tmp_path: Path, overrides: list[str], message: str
) -> None:
    videos = str(sets["clips"])
    with pytest.raises((ConfigError, DataError)) as error:
        options = [override.replace("VIDEOS", videos) for override in overrides]
        pretrain("null", tmp_path / "run", mixed(sets, WEIGHTS), *CLIPS, *options)
    assert message.replace("VIDEOS", videos) in str(error.value) and "\n" not in str(error.value)


def test_a_validation_set_of_both_media_is_one_line(sets: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    shutil.copy(next(sets["photos"].with_name("bright").glob("*.png")), tmp_path / "both")
    (tmp_path / "both" / "1.mp4").write_bytes(encoded(film(12)))
    build(tmp_path / "both", tmp_path / "shards", workers=1)
    options = (mixed(sets, WEIGHTS), *CLIPS, f"data.validation={tmp_path / 'shards'}")
    message = f"{tmp_path / 'shards'}: has images and videos, but a batch has only one kind: build a data set of each"
    with pytest.raises(DataError) as error:
        pretrain("null", tmp_path / "run", *options)
    assert str(error.value) == message
    training, validation = inputs_of(small_recipe("null", tmp_path, *options))[0]
    assert isinstance(training, Manifest) and validation == message


def test_a_mixture_of_one_medium_has_no_images_beside_it(sets: dict[str, Path], tmp_path: Path) -> None:
    overrides = (mixed({"clips": sets["clips"]}), *CLIPS, f"data.validation_images={sets['photos']}")
    assert small_recipe("null", tmp_path, *overrides).data.validation_images
    with pytest.raises(DataError, match=r"^data\.validation_images is for pre-training on a data\.mixture of images"):
        pretrain("null", tmp_path / "run", *overrides)
