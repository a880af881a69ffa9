"""Batches of a mixture: the samples of its data sets, as each would give them, whatever the ranks; and its settings."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import small_recipe
from mixing import grey_shards, mixed, settings
from servers import http_server

from pipeline.config import load_recipe
from pipeline.data.batch import Batch
from pipeline.data.data_sets import DataSets
from pipeline.data.errors import DataError
from pipeline.data.exact import ExactData
from pipeline.data.loader import Loader
from pipeline.data.request import Request
from pipeline.data.settings import Data
from pipeline.data.training_data import Part
from pipeline.settings import ConfigError
from shards.build import build
from shards.manifest import Manifest

CPU = torch.device("cpu")
WEIGHTS = {"photos": 3.0, "art": 1.0}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two data sets, of 23 bright and of 11 dark images."""
    folder = tmp_path_factory.mktemp("sets")
    bright, dark = grey_shards(folder, "bright", range(150, 173)), grey_shards(folder, "dark", range(40, 51))
    return {"photos": bright, "art": dark}


def batches_of(data: Data, batch: int, micro: int, steps: int, rank: int = 0, ranks: int = 1) -> list[Batch]:
    source = ExactData(data, Part(batch, micro, 3, CPU, rank=rank, world_size=ranks, local_rank=rank, local_size=ranks))
    made = list(source.batches(0, steps * batch // ranks // micro))
    source.close()
    return made


def by_input(batches: list[Batch]) -> dict[tuple[int, int, int], torch.Tensor]:
    """Return the pixels by (step, id, key)."""
    return {
        (batch.request.step, sample, key): pixels
        for batch in batches
        for sample, key, pixels in zip(batch.request.input_ids.tolist(), batch.keys.tolist(), batch.inputs, strict=True)
    }


def alone(part: Manifest, data: Data, request: Request, here: np.ndarray, first: int) -> torch.Tensor:
    """Return what one data set by itself gives for those inputs of a request that are of it."""
    own = replace(
        request,
        ids=request.input_ids[here] - first,
        boxes=request.boxes[here],
        flips=request.flips[here],
        keys=request.keys[here],
        weights=request.weights[here],
        frames=None if request.frames is None else request.frames[here],
    )
    loader = Loader(part, data, len(own.ids), CPU)
    (made,) = loader.batches([own])
    loader.close()
    return made.inputs


@pytest.mark.parametrize("repeats", [1, 2])
def test_an_image_is_that_of_its_data_set(sets: dict[str, Path], repeats: int) -> None:
    art, photos = (Manifest.load(sets[name]) for name in ("art", "photos"))  # in the order of their names
    seen = {"art": 0, "photos": 0}
    for batch in batches_of(settings(sets, WEIGHTS, repeats=repeats), 8, 8, 12):
        of_photos = batch.request.input_ids >= len(art)
        for name, part, here, first in (("art", art, ~of_photos, 0), ("photos", photos, of_photos, len(art))):
            seen[name] += here.sum()
            if here.any():
                images = alone(part, settings(sets), batch.request, here, first)
                assert torch.equal(images, batch.inputs[torch.from_numpy(here)])
                assert (images.float().mean() > 100) == (name == "photos")
    assert seen == {"art": 24, "photos": 72}


@pytest.mark.parametrize(("ranks", "micro"), [(2, 6), (2, 2), (3, 4), (1, 4), (6, 1)])
def test_batches_do_not_depend_on_ranks_and_micro_batches(sets: dict[str, Path], ranks: int, micro: int) -> None:
    data = settings(sets, WEIGHTS)
    alone = by_input(batches_of(data, 12, 12, 5))
    parts = [by_input(batches_of(data, 12, micro, 5, rank, ranks)) for rank in range(ranks)]
    together = {key: value for part in parts for key, value in part.items()}
    assert together.keys() == alone.keys() and len(alone) == 60
    assert all(torch.equal(together[key], image) for key, image in alone.items())


def test_without_weights_all_data_sets_end_their_epochs_together(sets: dict[str, Path]) -> None:
    source = ExactData(settings(sets), Part(34, 34, 3, CPU))
    assert source.samples == 34
    for batch in source.batches(0, 3):
        assert sorted(batch.request.ids.tolist()) == list(range(34))
    source.close()


def test_the_order_in_which_data_sets_are_written_does_not_matter(sets: dict[str, Path]) -> None:
    there = ExactData(settings(sets, WEIGHTS), Part(8, 8, 3, CPU))
    back = ExactData(settings(dict(reversed(sets.items())), WEIGHTS), Part(8, 8, 3, CPU))
    assert there.identity == back.identity
    assert next(there.batches(0, 1)).request.ids.tolist() == next(back.batches(0, 1)).request.ids.tolist()
    for source in (there, back):
        source.close()


def test_samples_are_counted_and_found_by_data_set(sets: dict[str, Path]) -> None:
    found = DataSets(settings(sets, WEIGHTS))
    assert found.counts([0, 10, 11, 33, 33]) == {"art": 2, "photos": 3}
    assert found.counts([]) == {"art": 0, "photos": 0}
    art, photos = (Manifest.load(sets[name]) for name in ("art", "photos"))
    assert found.where([10, 11, 33]) == [
        {
            "data_set": name,
            "key": manifest.key(row),
            "path": manifest.path(row),
            "shard": manifest.shard_names[manifest.shard[row]],
        }
        for name, manifest, row in (("art", art, 10), ("photos", photos, 0), ("photos", photos, 22))
    ]
    assert found.notes == [
        "data.mixture.art: 11 images, 25.0% of the model's inputs; 0.773 of its own epochs per epoch of the run",
        "data.mixture.photos: 23 images, 75.0% of the model's inputs; 1.11 of its own epochs per epoch of the run",
    ]


def test_remote_data_sets_share_a_cache(sets: dict[str, Path], tmp_path: Path) -> None:
    """The pixels are those of the disks, and shards of both data sets come from the node's cache."""
    expected = by_input(batches_of(settings(sets, WEIGHTS), 8, 8, 20))
    with http_server(sets["photos"]) as one, http_server(sets["art"]) as other:
        urls = {"photos": one.url, "art": other.url}
        data = settings(urls, WEIGHTS, cache=str(tmp_path / "cache"))
        made = batches_of(data, 8, 8, 20)
        source = ExactData(data, Part(8, 8, 3, CPU))
        for _ in source.batches(0, 20):
            pass
        assert source.counters()["samples_from_cache"] > 0 and source.counters()["cache_errors"] == 0
        source.close()
        kept = {path.name.partition("-")[0] for path in tmp_path.glob("cache/*/*.tar")}
    found = by_input(made)
    assert found.keys() == expected.keys() and all(torch.equal(found[key], image) for key, image in expected.items())
    assert kept == {f"{shard:06d}" for shard in range(3 + 5)}


def test_clips_of_a_mixture_are_those_of_its_data_sets(videos: Path, tmp_path: Path) -> None:
    for part, numbers in (("few", range(0, 22, 4)), ("many", range(1, 22, 2))):
        (tmp_path / part).mkdir()
        for number in numbers:
            (source,) = videos.glob(f"{number:02d}.*")
            shutil.copy(source, tmp_path / part)
        build(tmp_path / part, tmp_path / f"{part}-shards", samples_per_shard=4, workers=1)
    roots = {part: tmp_path / f"{part}-shards" for part in ("few", "many")}
    data = settings(roots, {"few": 1, "many": 1}, frames=4, sampling="stride", stride=2)
    few, many = (Manifest.load(root) for root in roots.values())
    for batch in batches_of(data, 6, 6, 6):
        assert batch.inputs.shape == (6, 3, 4, 32, 32) and batch.weights.all()
        of_many = batch.request.ids >= len(few)
        assert of_many.sum() == 3
        for part, here, first in ((few, ~of_many, 0), (many, of_many, len(few))):
            clips = alone(part, data, batch.request, here, first)
            assert torch.equal(clips, batch.inputs[torch.from_numpy(here)])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.mixture={a: {shards: x}}"], "data.shards and data.mixture exclude each other: set one of them to null"),
        (["data.shards=null"], "data.shards is missing: set it in the recipe or give data.shards=VALUE"),
        (["data.shards=null", "data.mixture={}"], "data.mixture={} has no data set: give at least one, or null"),
        (
            ["data.shards=null", "data.mixture={a: {shards: x, weight: 2}, b: {shards: y}}"],
            "data.mixture.b.weight is missing: give all data sets a weight or, to weigh them by their samples, none",
        ),
        (["data.shards=null", "data.mixture={a: {shards: x, weight: 0}}"], "data.mixture.a.weight=0: "),
        (["data.shards=null", "data.mixture={a: {weight: 3}}"], "data.mixture.a.shards is missing: set it"),
        (
            ["data.shards=null", "data.mixture={a: {shards: x, wieght: 3}}"],
            "unknown key data.mixture.a.wieght: did you mean weight?",
        ),
        (
            ["data.shards=null", "data.mixture={a/b: {shards: x}}"],
            "data.mixture.a/b=a/b: the name of a data set has up to 64",
        ),
        (["data.shards=null", "data.mixture=x"], "data.mixture=x: input should be a valid dictionary"),
        (
            ["data.shards=null", "data.mixture={a: {shards: 'https://u:p@host/x'}}"],
            "data.mixture.a.shards contains credentials or a query: leave them out",
        ),
        (
            ["data.shards=null", "data.mixture={a: {shards: 'pipe:cat x'}}"],
            "only data.shards of data.mode=stream may be",
        ),
        (
            ["data.shards=null", "data.mode=stream", "data.stream_samples=9", "data.mixture={a: {shards: x}}"],
            "data.mode=stream reads data.shards: index the tars for data.mixture, or leave it out",
        ),
        (["data.mixture={a: folder}"], "data.mixture.a=folder: a data set is written as {shards: FOLDER OR URL}"),
        (["data.mixture={a: {shards: x, z: 1}}"], "unknown key data.mixture.a.z: there are shards, weight"),
        (
            ["data.validation_images=y"],
            "data.validation_images is for pre-training on a data.mixture of images and vid",
        ),
    ],
)
def test_settings_that_cannot_be_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        small_recipe("x", Path("run"), *overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_mixture_is_given_in_a_recipe_and_on_the_command_line(tmp_path: Path) -> None:
    recipe = small_recipe("null", tmp_path, mixed({"b": "/sets/b", "a": "~/a"}, {"a": 0.5, "b": 2}))
    assert recipe.data.mixture is not None and recipe.data.shards is None
    assert {name: (one.shards, one.weight) for name, one in recipe.data.mixture.items()} == {
        "a": (str(Path("~/a").expanduser()), 0.5),
        "b": ("/sets/b", 2),
    }
    (tmp_path / "mine.yaml").write_text(
        "optim: {epochs: 40, batch_size: 8}\ndata:\n  mixture:\n    b: {shards: /sets/b}\n    a: {shards: /sets/a}\n"
    )
    assert load_recipe(str(tmp_path / "mine.yaml")).data.mixture is not None


def test_a_data_set_whose_disk_is_gone_ends_the_run_with_its_name(sets: dict[str, Path], tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    shutil.copytree(sets["art"], gone)
    for tar in gone.glob("*.tar"):
        tar.unlink()
    data = settings({"art": gone, "photos": sets["photos"]}, bad_in_a_row=5)
    with pytest.raises(DataError) as error:
        batches_of(data, 32, 32, 3)
    text = str(error.value)
    assert "bad samples in a row" in text and f"{gone}/" in text
    assert text.endswith("run `maskfeat-shards verify` on its data set and restore what it names")
