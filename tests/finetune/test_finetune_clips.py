"""Fine-tuning on clips: one draw a clip, mixing, learning, resuming, and the multi-view test against NumPy."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import FINETUNE, SMALL, assert_same_weights, finetune, finetune_recipe, free_port, losses, metrics
from making_images import make_tree
from making_videos import encoded, film
from numpy.typing import NDArray
from ranks import Ranks
from safetensors.torch import load_file
from scripting import run_script

from pipeline.checkpoints.checkpoint import CheckpointError, chosen
from pipeline.cluster.phases import Phases
from pipeline.cluster.world import join
from pipeline.data.exact import ExactData
from pipeline.data.labels import Int64s
from pipeline.data.loader import Loader
from pipeline.data.training_data import Part
from pipeline.data.views import View, view_requests, views
from pipeline.finetune.build import build_classifier
from pipeline.finetune.config import FinetuneRecipe
from pipeline.finetune.erasing import random_erasing
from pipeline.finetune.randaugment import rand_augment
from pipeline.finetune.task import Finetuning
from pipeline.finetune.views import accuracy_by_views, averaged
from pipeline.measure import Frozen, measure_classifier
from pipeline.pixels import normalise
from pipeline.settings import ConfigError
from pipeline.trained import load_model, recipe_of
from shards.build import build
from shards.manifest import Manifest

FRAMES = 4
CLIPS = ("data.image_size=32", f"data.frames={FRAMES}", "data.sampling=stride", "data.stride=1", "data.lanes=1")


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Shards of videos of two classes: those that move one way, and the same ones backwards."""
    out = tmp_path_factory.mktemp("moving")
    shards = {}
    for name, seeds in (("train", range(8)), ("validation", range(8, 13))):
        for seed in seeds:
            frames = film(12, seed=seed)
            for label, shown in (("left", frames), ("right", frames[::-1])):
                folder = out / "source" / name / label
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{seed}.mp4").write_bytes(encoded(shown))
        build(out / "source" / name, out / name, samples_per_shard=4, workers=1)
        shards[name] = out / name
    return shards


def test_all_frames_of_a_clip_are_changed_alike() -> None:
    images, keys = torch.randint(0, 256, (6, 3, 20, 24), dtype=torch.uint8), np.arange(6)
    clips = images[:, :, None].repeat(1, 1, 3, 1, 1)
    changed = rand_augment(clips, keys)
    for frame in range(3):
        assert torch.equal(changed[:, :, frame], rand_augment(images, keys))
    assert not torch.equal(changed, clips)


def test_all_frames_of_a_clip_lose_the_same_box() -> None:
    clips, keys = torch.zeros(8, 3, 3, 20, 24), np.arange(8)
    erased = random_erasing(clips.clone(), keys, probability=1.0) != 0
    alone = random_erasing(clips[:, :, 0].clone(), keys, probability=1.0) != 0
    for frame in range(3):
        assert torch.equal(erased[:, :, frame], alone)
    assert alone.any((1, 2, 3)).all() and not alone.all()


def test_views_are_averaged_as_numpy_does() -> None:
    shares = torch.rand(3, (1 + 4) * 3, 5, generator=torch.Generator().manual_seed(0))
    expected = np.stack([shares.numpy()[:, :3].mean(1), shares.numpy()[:, 3:].mean(1)], axis=1)
    np.testing.assert_allclose(averaged(shares, [1, 4], 3).numpy(), expected, atol=1e-6)


def test_a_killed_run_on_clips_resumes_and_is_tested_in_several_views(moving: dict[str, Path], tmp_path: Path) -> None:
    settings = (*CLIPS, "data.repeats=2", "optim.batch_size=8", "optim.epochs=4", "run.save_every=5", "run.log_every=1")
    sets = moving["train"], moving["validation"]
    finetune(*sets, tmp_path / "whole", *settings)
    killed = tmp_path / "killed"
    data = (f"data.shards={sets[0]}", f"data.validation={sets[1]}", f"run.dir={killed}")
    arguments = ["small", *SMALL, *FINETUNE, *data, *settings]
    first = Ranks(1, arguments, tmp_path / "first", free_port(), "scripts/finetune.py")
    first.until(lambda: (killed / "metrics.jsonl").exists() and (killed / "metrics.jsonl").read_text().count("\n") > 5)
    first.kill()
    assert first.wait(0) in ([-9], [0])  # the latter where it was faster than the kill
    finetune(*sets, killed, *settings)
    assert losses(killed) == losses(tmp_path / "whole")
    assert_same_weights(killed, tmp_path / "whole")
    last = metrics(tmp_path / "whole")[-1]
    assert last["step"] == 16 and last["val_bad_samples"] == 0  # 16 videos, two clips of each, four times

    run, found = tmp_path / "whole", chosen(tmp_path / "whole", None)
    measured = measure_classifier(run, found, (), [1, 3], 3, join())
    assert measured.keys() == {f"top{top}_{clips}x3" for top in (1, 5) for clips in (1, 3)}
    assert measured["top5_1x3"] == measured["top5_3x3"] == 1  # of two classes
    whole = measure_classifier(run, found, ("engine.micro_batch=1",), [3], 3, join())
    assert whole["top1_3x3"] == measured["top1_3x3"]  # whatever is computed at once

    arguments = [str(run), "--clips", "1", "3", "--crops", "3"]
    ranks = Ranks(2, arguments, tmp_path / "said", free_port(), "scripts/validate.py")
    assert ranks.wait(240) == [0, 0], ranks.said()[-3000:]
    printed = ", ".join(f"{name} {value:.4g}" for name, value in measured.items())
    assert f"step 16: {printed}\n" in ranks.said()


def test_whole_clips_are_mixed(moving: dict[str, Path], tmp_path: Path) -> None:
    """Two clips of each video under mixup and CutMix: shares, labels and weights are those of both, frame by frame."""
    still = ("augment.randaugment=null", "augment.erasing=0", "augment.smoothing=0", "data.repeats=2")
    for kind, other in (("mixup", "cutmix"), ("cutmix", "mixup")):
        settings = (*CLIPS, *still, f"augment.{kind}=1", f"augment.{other}=0", "optim.batch_size=8")
        recipe, world = finetune_recipe(moving["train"], moving["validation"], tmp_path / kind, *settings), join()
        data = ExactData(recipe.data, Part(8, 8, 0, world.device))
        with Phases(tmp_path, 0, 60) as phases:
            task = Finetuning(recipe, data, world, phases)
            batch = next(data.batches(0, 1))
            batch.weights[2:4] = 0  # both clips of a video that could not be read
            torch.manual_seed(5)
            mixed, shares, weights = task.prepare(batch)
        data.close()
        assert weights.tolist() == [1, 1, 0, 0, 0, 0, 1, 1]
        own = normalise(batch.inputs, torch.float32, recipe.model.statistics)
        labels = data.manifest.label[np.repeat(batch.request.ids, 2)]
        one = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), 2).float()
        if kind == "mixup":
            lam = float(((mixed - own.flip(0)) * (own - own.flip(0))).sum() / (own - own.flip(0)).square().sum())
            torch.testing.assert_close(mixed, lam * own + (1 - lam) * own.flip(0), atol=1e-5, rtol=0)
        else:
            covered = (mixed != own).any((0, 1, 2))  # rows and columns, the same in all clips, colours and frames
            lam = 1 - float(covered.float().mean())
            torch.testing.assert_close(mixed, torch.where(covered, own.flip(0), own), atol=0, rtol=0)
            box = covered.nonzero()
            assert len(box) == (np.ptp(box[:, 0].numpy()) + 1) * (np.ptp(box[:, 1].numpy()) + 1)
        assert 0 < lam < 1
        torch.testing.assert_close(shares, lam * one + (1 - lam) * one.flip(0), atol=1e-5, rtol=0)


def test_a_video_is_never_mixed_with_itself(moving: dict[str, Path], tmp_path: Path) -> None:
    """Two clips of each of one or three videos make an even number of clips."""
    data = (moving["train"], moving["validation"], tmp_path / "run", *CLIPS, "data.repeats=2", "optim.batch_size=12")
    for micro_batch, videos in ((2, 1), (6, 3)):
        with pytest.raises(ConfigError, match=f"pairs the videos of a micro-batch, and {videos} are an odd number"):
            finetune(*data, f"engine.micro_batch={micro_batch}")


def test_learns_to_tell_red_videos_from_blue_ones(tmp_path: Path) -> None:
    for name, seeds in (("train", range(8)), ("validation", range(8, 12))):
        for label, colour in (("blue", (0.2, 0.2, 1)), ("red", (1, 0.2, 0.2))):
            folder = tmp_path / "source" / name / label
            folder.mkdir(parents=True)
            for seed in seeds:
                frames = (film(8, seed=seed, grey=True) * np.array(colour)).astype(np.uint8)
                (folder / f"{seed}.mp4").write_bytes(encoded(frames))
        build(tmp_path / "source" / name, tmp_path / name, workers=1)
    settings = (*CLIPS, "data.repeats=2", "optim.epochs=30", "run.eval_every=5")
    finetune(tmp_path / "train", tmp_path / "validation", tmp_path / "run", *settings)
    first, *_, last = (line for line in metrics(tmp_path / "run") if "val_top1" in line)
    assert last["val_top1"] == 1 and last["val_loss"] < 0.4 < first["val_loss"]


def accuracy(
    recipe: FinetuneRecipe, model: Frozen, manifest: Manifest, labels: Int64s, clips: list[int], crops: int
) -> dict[str, float]:
    phases = Phases(recipe.run.dir, 0, 60)
    return accuracy_by_views(model, manifest, labels, recipe, join(), phases, clips, crops)


def test_the_accuracy_of_views_is_that_of_averaged_softmax(moving: dict[str, Path], tmp_path: Path) -> None:
    """Against views decoded one at a time and averaged by NumPy, by an untrained model that tells videos apart."""
    recipe = finetune_recipe(moving["train"], moving["validation"], tmp_path, *CLIPS)
    torch.manual_seed(0)
    network = build_classifier(recipe, 2)
    model, manifest = Frozen(network, torch.float32), Manifest.load(moving["validation"])
    loader = Loader(manifest, recipe.data, len(manifest), torch.device("cpu"))
    everything = {"samples": len(manifest), "micro_batch": len(manifest), "rank": 0, "world_size": 1}

    def logits(view: View) -> NDArray[np.float64]:
        (batch,) = loader.batches(view_requests(manifest, recipe.data, [view], **everything))
        with torch.no_grad():
            return model.predict(normalise(batch.inputs, torch.float32, recipe.model.statistics)).double().numpy()

    with torch.no_grad():
        network.view.head.weight.normal_(std=30)
        network.view.head.bias.sub_(torch.from_numpy(logits(View(1, 0)).mean(0)))  # neither class is always named
    for clips, crops in ((1, 1), (3, 1), (2, 3)):
        exponents = np.exp([logits(view) for view in views(clips, crops)])
        named = (exponents / exponents.sum(2, keepdims=True)).mean(0).argmax(1)
        assert 0 < named.sum() < len(named)
        for labels, right in ((named, 1), (1 - named, 0)):
            together = accuracy(recipe, model, manifest, labels, [5, clips], crops)
            assert together[f"top1_{clips}x{crops}"] == right
    loader.close()


def test_an_image_is_looked_at_once_also_as_a_clip_of_one_frame(tmp_path: Path) -> None:
    make_tree(tmp_path / "images", 4, ("ant", "bee"))
    build(tmp_path / "images", tmp_path / "shards", workers=1)
    run, single = tmp_path / "run", ("data.image_size=32", "data.frames=1", "optim.epochs=1", "optim.warmup_epochs=0")
    finetune(tmp_path / "shards", tmp_path / "shards", run, *single)
    assert measure_classifier(run, chosen(run, None), (), None, 1, join()).keys() == {"top1_1x1", "top5_1x1"}


def test_a_bad_video_is_not_counted(moving: dict[str, Path], tmp_path: Path) -> None:
    """A model that always names the first class is right of all videos but that one."""
    shutil.copytree(moving["validation"], tmp_path / "hurt")
    manifest = Manifest.load(tmp_path / "hurt")
    recipe = finetune_recipe(moving["train"], tmp_path / "hurt", tmp_path / "run", *CLIPS)
    model = build_classifier(recipe, 2)
    with torch.no_grad():
        model.view.head.bias.copy_(torch.tensor([5.0, 0.0]))
    labels = np.zeros(len(manifest), dtype=np.int64)
    labels[2] = 1
    always_first = Frozen(model, torch.float32)
    assert accuracy(recipe, always_first, manifest, labels, [2], 1)["top1_2x1"] == pytest.approx(1 - 1 / len(manifest))
    shard = tmp_path / "hurt" / manifest.shard_names[0]
    content = bytearray(shard.read_bytes())
    content[int(manifest.offset[2]) + 40] ^= 255
    shard.write_bytes(content)
    assert accuracy(recipe, always_first, manifest, labels, [2], 1) == {"top1_2x1": 1, "top5_2x1": 1}


def test_a_fine_tuned_mvit_is_exported_and_a_setting_of_another_model_is_one_line(
    moving: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = "model.options={embed_dim: 8, depth: 3, num_heads: 1, stages: [1, 2]}"
    settings = (*CLIPS, "data.image_size=64", "model.name=mvit_v2", options, "optim.epochs=1", "optim.warmup_epochs=0")
    finetune(moving["train"], moving["validation"], tmp_path / "run", *settings, "model.position_init=random")
    assert run_script(monkeypatch, "export.py", tmp_path / "run", tmp_path / "out") == 0
    assert "| steps | 1 of 16 clips |" in (tmp_path / "out" / "README.md").read_text()
    found = chosen(tmp_path / "run", None)
    network = load_model(found, recipe_of(found)).encoder.state_dict()
    exported = load_file(tmp_path / "out" / "model.safetensors")
    assert exported.keys() == network.keys() and exported["head.1.weight"].shape == (2, 32)
    assert all(torch.equal(exported[name], network[name]) for name in network)
    assert re.search(r"\| steps \| \d of \d+ clips \|", (tmp_path / "out" / "README.md").read_text())

    with pytest.raises(CheckpointError, match=r"its recipe and its weights do not match \(size mismatch") as error:
        measure_classifier(tmp_path / "run", found, ("data.frames=2",), None, 1, join())
    assert "\n" not in str(error.value)
