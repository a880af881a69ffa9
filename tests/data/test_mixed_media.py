"""Batches of a mixture of images and videos: each of one medium, made as its data set alone makes them."""

import shutil
from pathlib import Path

import pytest
import torch
from making_videos import encoded, film
from mixing import grey_shards, settings
from servers import http_server
from test_mixed_sets import alone, batches_of, by_input

from pipeline.data.data_sets import DataSets
from pipeline.data.errors import DataError
from pipeline.data.exact import ExactData
from pipeline.data.training_data import Part
from shards.build import build
from shards.manifest import Manifest

CPU = torch.device("cpu")
CLIPS = {"frames": 4, "sampling": "stride", "stride": 2}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, video_shards: Path) -> dict[str, Path]:
    """Images, 23 bright and 11 dark ones, and 22 videos; by name the videos are in the middle."""
    folder = tmp_path_factory.mktemp("sets")
    bright, dark = grey_shards(folder, "bright", range(150, 173)), grey_shards(folder, "dark", range(40, 51))
    return {"photos": bright, "art": dark, "clips": video_shards}


WEIGHTS = {"photos": 2.0, "art": 1.0, "clips": 3.0}


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("stored", ["video_shards", "jpeg_shards"])
def test_a_batch_is_that_of_one_medium(
    sets: dict[str, Path], repeats: int, stored: str, request: pytest.FixtureRequest
) -> None:
    """An image is a clip of one frame, the one that a run on images alone at data.frames=1 has."""
    sets = sets | {"clips": request.getfixturevalue(stored)}
    parts = [("art", 0, 11), ("photos", 11, 34), ("clips", 34, 56)]  # images before videos
    seen = dict.fromkeys(sets, 0)
    for batch in batches_of(settings(sets, WEIGHTS, repeats=repeats, **CLIPS), 8, 8, 12):
        frames = 4 if batch.request.medium == "video" else 1
        assert batch.inputs.shape == (8, 3, frames, 32, 32) and batch.weights.all()
        for name, first, end in parts:
            here = (batch.request.input_ids >= first) & (batch.request.input_ids < end)
            seen[name] += here.sum()
            assert not here.any() or (name == "clips") == (frames == 4)
            if here.any():
                data = settings({name: sets[name]}, **CLIPS | {"frames": frames})
                inputs = alone(Manifest.load(sets[name]), data, batch.request, here, first)
                assert torch.equal(inputs, batch.inputs[torch.from_numpy(here)])
    assert seen == {"art": 16, "photos": 32, "clips": 48}


@pytest.mark.parametrize(("ranks", "micro"), [(2, 6), (3, 2), (6, 1)])
def test_batches_do_not_depend_on_ranks_and_micro_batches(sets: dict[str, Path], ranks: int, micro: int) -> None:
    data = settings(sets, WEIGHTS, **CLIPS)
    expected = by_input(batches_of(data, 12, 12, 4))
    parts = [batches_of(data, 12, micro, 4, rank, ranks) for rank in range(ranks)]
    media = [[(batch.request.step, batch.request.medium) for batch in part] for part in parts]
    assert all(of_rank == media[0] for of_rank in media) and len({medium for _, medium in media[0]}) == 2
    together = {key: value for part in parts for key, value in by_input(part).items()}
    assert together.keys() == expected.keys() and len(expected) == 48
    assert all(torch.equal(together[key], inputs) for key, inputs in expected.items())


def test_batches_of_one_medium_leave_out_the_others_steps(sets: dict[str, Path]) -> None:
    source = ExactData(settings(sets, WEIGHTS, **CLIPS), Part(8, 4, 3, CPU))
    both = list(source.batches(0, 12))
    assert source.media == {"image", "video"}
    for medium in ("image", "video"):
        expected = [batch for batch in both if batch.request.medium == medium]
        for batch, other in zip(source.batches(0, len(expected), medium), expected, strict=True):
            assert batch.request.step == other.request.step and torch.equal(batch.inputs, other.inputs)
    source.close()


def test_samples_are_counted_and_found_by_data_set(sets: dict[str, Path]) -> None:
    found = DataSets(settings(sets, WEIGHTS, **CLIPS))
    assert found.of_both_media and found.counts([0, 10, 11, 33, 34, 55]) == {"art": 2, "photos": 2, "clips": 2}
    clips = Manifest.load(sets["clips"])
    assert [names["data_set"] for names in found.where([10, 33, 34])] == ["art", "photos", "clips"]
    assert found.where([55])[0]["key"] == clips.key(21)
    assert found.notes == [
        "data.mixture has images and videos: every step takes one of them, and an image is a clip of one frame",
        "data.mixture.art: 11 images, 16.7% of the model's inputs; 0.848 of its own epochs per epoch of the run",
        "data.mixture.photos: 23 images, 33.3% of the model's inputs; 0.812 of its own epochs per epoch of the run",
        "data.mixture.clips: 22 videos, 50.0% of the model's inputs; 1.27 of its own epochs per epoch of the run",
    ]


def test_remote_images_and_videos_share_a_cache(sets: dict[str, Path], tmp_path: Path) -> None:
    expected = by_input(batches_of(settings(sets, WEIGHTS, **CLIPS), 8, 8, 12))
    with http_server(sets["photos"]) as one, http_server(sets["art"]) as other, http_server(sets["clips"]) as third:
        urls = {"photos": one.url, "art": other.url, "clips": third.url}
        data = settings(urls, WEIGHTS, cache=str(tmp_path / "cache"), **CLIPS)
        found = by_input(batches_of(data, 8, 8, 12))
        source = ExactData(data, Part(8, 8, 3, CPU))
        for _ in source.batches(0, 12):
            pass
        assert source.counters()["samples_from_cache"] > 0 and source.counters()["cache_errors"] == 0
        source.close()
    assert found.keys() == expected.keys() and all(torch.equal(found[key], inputs) for key, inputs in expected.items())


def test_single_frames_of_videos_are_beside_images(sets: dict[str, Path]) -> None:
    for batch in batches_of(settings(sets, WEIGHTS, **CLIPS | {"frames": 1}), 8, 8, 4):
        assert batch.inputs.shape == (8, 3, 1, 32, 32)


@pytest.mark.parametrize("case", ["no frames", "both in one", "images only", "twice", "labels"])
def test_what_cannot_be_mixed_is_one_line(sets: dict[str, Path], tmp_path: Path, case: str) -> None:
    sets, changes = dict(sets), dict(CLIPS)
    if case == "no frames":
        changes = {}
        message = "has videos: set data.frames to the number of frames that the model sees of each"
    elif case == "both in one":
        (tmp_path / "both").mkdir()
        shutil.copy(next(sets["photos"].with_name("bright").glob("*.png")), tmp_path / "both")
        (tmp_path / "both" / "1.mp4").write_bytes(encoded(film(12)))
        build(tmp_path / "both", tmp_path / "shards", workers=1)
        sets["all"] = tmp_path / "shards"
        message = "data.mixture: all has images and videos, but a batch has only one kind: build a data set of each"
    elif case == "images only":
        del sets["clips"]
        message = "has images, and data.frames=4 asks for clips of videos: give videos, or set data.frames=1"
    elif case == "twice":
        shutil.copytree(sets["clips"], tmp_path / "other")
        sets["other"] = tmp_path / "other"
        message = "data.mixture: clips and other are the same data set: list it once, with a larger weight"
    else:
        message = (
            "data.mixture: art has images and clips has videos, but a classifier is trained on one kind: leave out the "
            "data sets of the other"
        )
    with pytest.raises(DataError) as error:
        if case == "labels":
            DataSets(settings(sets, None, **changes), labelled=True)
        else:
            batches_of(settings(sets, None, **changes), 4, 4, 1)
    assert message in str(error.value) and "\n" not in str(error.value)
