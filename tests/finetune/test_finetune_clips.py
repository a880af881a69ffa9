"""Fine-tuning on clips: one draw a clip, mixing, resuming, and the multi-view test against NumPy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from launching import finetune, finetune_recipe, losses, metrics
from making_videos import encoded, film

from pipeline.checkpoints.checkpoint import chosen
from pipeline.cluster.phases import Phases
from pipeline.cluster.world import join
from pipeline.data.labels import labels_of
from pipeline.finetune.build import build_classifier
from pipeline.finetune.erasing import random_erasing
from pipeline.finetune.randaugment import rand_augment
from pipeline.finetune.views import accuracy_by_views, averaged
from pipeline.measure import Frozen, measure_classifier
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


def test_a_run_on_clips_resumes_and_is_tested_in_several_views(moving: dict[str, Path], tmp_path: Path) -> None:
    settings = (*CLIPS, "data.repeats=2", "optim.batch_size=8", "optim.epochs=4", "run.save_every=5", "run.log_every=1")
    sets = moving["train"], moving["validation"]
    finetune(*sets, tmp_path / "whole", *settings)
    finetune(*sets, tmp_path / "halves", *settings, "run.max_steps=10")
    finetune(*sets, tmp_path / "halves", *settings)
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole")
    last = metrics(tmp_path / "whole")[-1]
    assert last["step"] == 16 and last["val_bad_samples"] == 0  # 16 videos, two clips of each, four times

    run, found = tmp_path / "whole", chosen(tmp_path / "whole", None)
    measured = measure_classifier(run, found, (), [1, 3], 3, join())
    assert measured.keys() == {f"top{top}_{clips}x3" for top in (1, 5) for clips in (1, 3)}
    assert measured["top5_1x3"] == measured["top5_3x3"] == 1  # of two classes
    whole = measure_classifier(run, found, ("engine.micro_batch=1",), [3], 3, join())
    assert whole["top1_3x3"] == measured["top1_3x3"]  # whatever is computed at once


def test_the_accuracy_of_views_is_that_of_the_model(moving: dict[str, Path], tmp_path: Path) -> None:
    """With the labels of validation turned round, all that was right is wrong."""
    recipe = finetune_recipe(moving["train"], moving["validation"], tmp_path, *CLIPS)
    model = build_classifier(recipe, 2)
    with torch.no_grad():
        model.view.head.bias.copy_(torch.tensor([5.0, 0.0]))  # always the first class
    world = join()
    manifest, training = Manifest.load(moving["validation"]), Manifest.load(moving["train"])
    labels = labels_of(training, manifest)[1]
    labels[:3] = 1 - labels[:3]
    phases = Phases(tmp_path, 0, 60)
    accuracy = accuracy_by_views(
        Frozen(model, torch.float32), manifest, labels, recipe, world, phases, clips=[2], crops=1
    )
    assert accuracy["top1_2x1"] == pytest.approx((labels == 0).mean())
