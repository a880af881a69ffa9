"""Visual words: found on known clusters and in shards, by one rank and two, and used as tokens."""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from class_targets import COMPUTING, GRID, hog_words, random_images
from launching import free_port
from making import mask_of
from mixing import grey_shards, mixed
from ranks import Ranks
from timm.models import save_for_hf
from torch import Tensor

import pipeline.commands.words as words_script
import pipeline.words as words_package
from model.layout import Layout
from model.weights_file import WeightsError
from pipeline.cluster.world import join
from pipeline.config import load_recipe
from pipeline.targets.classes import as_targets
from pipeline.targets.features import Features
from pipeline.targets.hog import hog_target
from pipeline.targets.settings import TargetSettings
from pipeline.targets.target import Predictions, TargetError
from pipeline.targets.tokens.kmeans import IDLE, KMeans
from pipeline.targets.tokens.target import Tokens
from pipeline.targets.tokens.words import nearest, read_words, write_words
from shards.manifest import Manifest


def clusters(seed: int, copies: int = 200) -> tuple[Tensor, Tensor]:
    """Points around eight centres far from each other, (n, 12) and (8, 12)."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(8, 12, generator=torch.Generator().manual_seed(0)) * 5
    noise = torch.randn(8, copies, 12, generator=generator) * 0.1
    return (centres[:, None] + noise).flatten(0, 1)[torch.randperm(8 * copies, generator=generator)], centres


def alone(value: Any) -> Any:
    return value


def test_words_are_found_on_synthetic_clusters() -> None:
    first, centres = clusters(1)
    means = KMeans(first, 8, 0, alone, alone)
    for batch in range(5):
        means.update(clusters(2 + batch)[0])
    assert nearest(centres, means.centroids)[1].max() < 0.01
    assert len(nearest(centres, means.centroids)[0].unique()) == 8


def test_a_word_that_is_not_used_starts_again_where_vectors_fit_worst() -> None:
    first, centres = clusters(1)
    means = KMeans(first, 8, 0, alone, alone)
    means.centroids[3] = 1e3  # as if it had been led astray
    for batch in range(IDLE + 3):
        means.update(clusters(2 + batch)[0])
    assert means.restarts == 1
    assert len(nearest(centres, means.centroids)[0].unique()) == 8  # each cluster has a word of its own again


def test_two_halves_of_a_batch_move_words_as_the_whole_batch_does() -> None:
    first, _ = clusters(1)
    batch = clusters(2)[0]
    whole = KMeans(first, 8, 0, alone, alone)
    whole.update(batch)
    sums: list[Tensor] = []
    for part in batch.chunk(2):  # what each rank adds
        KMeans(first, 8, 0, lambda total: sums.append(total.clone()) or total, alone).update(part)
    half = KMeans(first, 8, 0, lambda total: total.copy_(sums[0] + sums[1]), alone)
    half.update(batch.chunk(2)[0])
    torch.testing.assert_close(half.centroids, whole.centroids, atol=1e-5, rtol=0)


def test_too_few_different_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="3 different patches are too few for 4 words"):
        KMeans(torch.eye(3).repeat(5, 1), 4, 0, alone, alone)


def test_ids_of_words_are_those_of_the_nearest_centroids(tmp_path: Path) -> None:
    settings = TargetSettings(kind="tokens", tokenizer=hog_words(tmp_path / "words"))
    target, images = Tokens.build(settings, GRID, COMPUTING), random_images(2, 3, 64, 64)
    cells = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    described = target.describe(images, mask_of(cells))
    patches, words = hog_target(images)[cells.flatten(1)].double().numpy(), read_words(tmp_path / "words").centroids
    distances = ((patches[:, None] - words.double().numpy()[None]) ** 2).sum(-1)
    assert described[:, 0, 0].tolist() == distances.argmin(1).tolist()
    everything = torch.arange(6).repeat(3)[:16].view(1, 4, 4)
    painted = target.paint(images[:1], as_targets(everything.flatten()).view(1, 4, 4, 1, 2))
    assert painted.shape == (1, 1, 192, 192)  # a word is painted as strokes, the same wherever it stands
    assert torch.equal(painted[..., :48, :48], painted[..., 48:96, 96:144]) and painted[..., :48, :48].any()
    assert not torch.equal(painted[..., :48, :48], painted[..., :48, 48:96])


def test_words_of_other_patches_or_another_teacher_or_damaged_ones_are_refused(tmp_path: Path) -> None:
    folder = hog_words(tmp_path / "words")
    settings = TargetSettings(kind="tokens", tokenizer=folder)
    with pytest.raises(TargetError, match="have 108 numbers, and a patch of this model has 27"):
        Tokens.build(settings, Predictions(Layout(1, 4, 4), (1, 8, 8)), COMPUTING)
    description = json.loads((folder / "words.json").read_text())
    (folder / "words.json").write_text(json.dumps(description | {"identity": {"target.kind": "hog", "other": 1}}))
    with pytest.raises(TargetError, match="were found with another teacher"):
        Tokens.build(settings, GRID, COMPUTING)
    for broken in ({"version": 2}, {"of": {"kind": "labels"}}, {"sha256": "0"}):
        (folder / "words.json").write_text(json.dumps(description | broken))
        with pytest.raises(WeightsError, match=str(folder)):
            read_words(folder)


def test_words_are_found_in_shards_always_the_same_and_bad_sources_are_one_line(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("data.image_size=32", "optim.batch_size=16", "data.lanes=4", "engine.precision=fp32")

    def find(*arguments: Path | str) -> int:
        monkeypatch.setattr(sys, "argv", ["words.py", str(shards), *map(str, arguments)])
        return words_script.main()

    for out in ("one", "two"):
        assert find(tmp_path / out, "--words", "8", *settings) == 0
    one, two = (read_words(tmp_path / out) for out in ("one", "two"))
    assert torch.equal(one.centroids, two.centroids) and one.centroids.shape == (8, 108)
    found = json.loads((tmp_path / "one" / "words.json").read_text())
    assert found["used"] == 8 and 0 < found["entropy"] <= 3 and 0 < found["explained"] < 1
    assert len(capsys.readouterr().out.splitlines()) == 4  # two lines each, none of a progress bar
    for wrong, message in (
        ((tmp_path / "one",), "has words already"),
        ((tmp_path / "x", "--of", "nothing"), "neither a folder nor a model of timm's"),
        ((tmp_path / "x", "--words", "40000"), "are too few for 40000 words: ask for fewer words"),
        ((tmp_path / "x", "optim.batch_size=4096"), "are not a whole batch"),
        ((shards / "manifest.parquet",), "manifest.parquet cannot be written"),
        ((tmp_path / "x", "data.mode=stream", "data.stream_samples=9"), "a manifest: index the tars"),
    ):
        assert find(wrong[0], *settings, *wrong[1:]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.strip().splitlines()) == 1


class Counted:
    """Makes a `KMeans` that counts what it sees."""

    patches = 0

    def __call__(self, *arguments: Any) -> KMeans:
        means = KMeans(*arguments)
        update = means.update

        def count(vectors: Tensor) -> None:
            self.patches += len(vectors)
            update(vectors)

        means.update = count  # type: ignore[method-assign]
        return means


def test_words_see_every_image_whatever_the_micro_batch(shards: Path, tmp_path: Path) -> None:
    recipe = load_recipe("small", [f"data.shards={shards}", "data.image_size=32", "optim.batch_size=16"])
    seen = []
    for micro_batch in (16, 4):
        one = recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"micro_batch": micro_batch})})
        with pytest.MonkeyPatch.context() as patch:
            counted = Counted()
            patch.setattr(words_package, "KMeans", counted)
            words_package.find_words(one, 8, tmp_path / str(micro_batch), join())
        seen.append(counted.patches)
    assert seen == [80 * 4, 80 * 4]  # of 90 images, five whole batches of 2 x 2 patches


def test_words_of_a_mixture_see_all_its_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data sets have 12 and 4 images of 2 x 2 patches; a target of words then works on both."""
    sets: dict[str, Path | str] = {
        "many": grey_shards(tmp_path, "many", range(60, 72)),
        "few": grey_shards(tmp_path, "few", range(180, 184)),
    }
    counted = Counted()
    monkeypatch.setattr(words_package, "KMeans", counted)
    settings = ("data.image_size=32", "optim.batch_size=8", "data.lanes=4", "engine.precision=fp32", mixed(sets))
    monkeypatch.setattr(sys, "argv", ["words.py", "null", str(tmp_path / "words"), "--words", "4", *settings])
    assert words_script.main() == 0
    assert counted.patches == 16 * 4
    found = json.loads((tmp_path / "words" / "words.json").read_text())
    identities = [Manifest.load(sets[name]).identity for name in ("few", "many")]
    assert found["found in"] == hashlib.sha256("".join(identities).encode()).hexdigest()


def test_words_of_a_teacher_that_moved_are_used_where_it_is_now(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2}
    predictions = Predictions(Layout(1, 2, 2), (1, 16, 16))
    for place in ("here", "there"):
        torch.manual_seed(0)
        teacher = timm.create_model("vit_tiny_patch16_224", **sizes)
        save_for_hf(teacher, tmp_path / place, model_args=sizes)
    of = TargetSettings(kind="features", teacher=str(tmp_path / "here"))
    identity = Features.build(of, predictions, COMPUTING).identity
    write_words(tmp_path / "words", torch.randn(5, 24), of, identity, {})
    shutil.rmtree(tmp_path / "here")
    settings = TargetSettings(kind="tokens", tokenizer=tmp_path / "words")
    with pytest.raises(TargetError, match=r"the words of target\.tokenizer are words of a teacher: .*here"):
        Tokens.build(settings, predictions, COMPUTING)
    moved = settings.model_copy(update={"teacher": str(tmp_path / "there")})
    images, mask = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8), mask_of(torch.ones(3, 2, 2).bool())
    target = Tokens.build(moved, predictions, COMPUTING)
    ids = target.describe(images, mask).view(3, 2, 2, 1, 2)

    # The colours of three images do not depend on what is predicted for the fourth
    painted = target.paint(images, ids)
    other = torch.cat([ids[:1].roll(1, 1), ids[1:]])
    other[0, ..., 0] = (other[0, ..., 0] + 1) % 5
    assert torch.equal(target.paint(images, other)[1:], painted[1:])


def test_two_ranks_find_words_that_are_as_good(shards: Path, tmp_path: Path) -> None:
    explained = []
    for ranks in (1, 2):
        out = tmp_path / f"words-{ranks}"
        settings = ["data.image_size=32", "optim.batch_size=16", "data.lanes=4", "engine.precision=fp32"]
        started = Ranks(
            ranks,
            [str(shards), str(out), "--words", "8", *settings],
            tmp_path / "said",
            free_port(),
            "scripts/words.py",
        )
        assert started.wait(120) == [0] * ranks, started.said()
        found = json.loads((out / "words.json").read_text())
        assert found["used"] == 8
        explained.append(found["explained"])
    assert explained[1] == pytest.approx(explained[0], abs=0.05)
