"""Batches of clips: the guarantees for images hold for videos, and for several inputs per sample."""

import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from making_videos import all_frames
from PIL import Image

from pipeline.data.augment import derive, sample_keys
from pipeline.data.batch import Batch
from pipeline.data.clips import placed_clips, random_clips
from pipeline.data.errors import DataError
from pipeline.data.exact import ExactData
from pipeline.data.loader import Loader
from pipeline.data.plan import Plan
from pipeline.data.request import Shapes, centre_requests, training_requests, validation_requests
from pipeline.data.settings import Data
from pipeline.data.training_data import Part
from pipeline.data.views import CENTRE, View, view_boxes, view_requests, views
from shards.build import build
from shards.manifest import Manifest

CPU = torch.device("cpu")
CLIPS = {"image_size": 32, "frames": 4, "stride": 3, "decode_threads": 2, "lanes": 2, "block": 8}


def settings(shards: Path, **changes: object) -> Data:
    return Data.model_validate({"shards": str(shards), **CLIPS, **changes})


def batches_of(data: Data, batch: int, micro: int, steps: int, rank: int = 0, ranks: int = 1) -> list[Batch]:
    part = Part(batch, micro, 3, CPU, rank=rank, world_size=ranks, local_rank=rank, local_size=ranks)
    source = ExactData(data, part)
    made = list(source.batches(0, steps * batch // ranks // micro))
    source.close()
    return made


def by_input(batches: list[Batch]) -> dict[tuple[int, int, int], torch.Tensor]:
    """Return the pixels by (step, id, mask key)."""
    return {
        (batch.request.step, sample, key): pixels
        for batch in batches
        for sample, key, pixels in zip(batch.request.input_ids.tolist(), batch.keys.tolist(), batch.inputs, strict=True)
    }


@pytest.fixture(scope="module")
def manifest(video_shards: Path) -> Manifest:
    return Manifest.load(video_shards)


def test_a_batch_has_the_frames_that_its_keys_draw(videos: Path, video_shards: Path, manifest: Manifest) -> None:
    """Compare with the middle of uncropped squares, decoded independently."""
    data = settings(video_shards, flip=False, crop_scale=(1, 1))
    assert manifest.video is not None and data.clip is not None
    for batch in batches_of(data, 4, 4, 3):
        assert (batch.inputs.shape, batch.inputs.dtype) == ((4, 3, 4, 32, 32), torch.uint8)
        ids = batch.request.ids
        keys = sample_keys(3, np.full_like(ids, batch.request.step * 4 // len(manifest)), ids)
        frames = random_clips(keys, manifest.video.frames[ids], manifest.video.rate[ids], data.clip)
        np.testing.assert_array_equal(batch.request.frames, frames)
        for sample, clip, made, box in zip(ids.tolist(), frames, batch.inputs, batch.request.boxes, strict=True):
            top, left, height, width = box
            pixels = all_frames((videos / manifest.path(sample)).read_bytes())[1][clip]
            crop = pixels[:, top : top + height, left : left + width].astype(float).mean((1, 2))
            assert np.abs(made.float().mean((2, 3)).T.numpy() - crop).max() < 2


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize(("ranks", "micro", "threads"), [(2, 6, 1), (2, 2, 3), (3, 4, 1), (1, 6, 2)])
def test_clips_do_not_depend_on_ranks_micro_batches_and_threads(
    video_shards: Path, repeats: int, ranks: int, micro: int, threads: int
) -> None:
    data = settings(video_shards, repeats=repeats)
    alone = by_input(batches_of(data, 12, 12, 4))
    changed = settings(video_shards, repeats=repeats, decode_threads=threads)
    parts = [by_input(batches_of(changed, 12, micro, 4, rank, ranks)) for rank in range(ranks)]
    together = {key: value for part in parts for key, value in part.items()}
    assert together.keys() == alone.keys() and len(alone) == 48
    assert all(torch.equal(together[key], clip) for key, clip in alone.items())


@pytest.mark.parametrize("kind", ["images", "videos"])
def test_repeats_are_several_inputs_of_samples_that_are_each_read_once_an_epoch(
    shards: Path, video_shards: Path, kind: str
) -> None:
    """A step of 12 inputs, 3 of each sample, takes 4 samples; all keys differ, and so do crops and clips."""
    root = shards if kind == "images" else video_shards
    data = settings(root, repeats=3, frames=None if kind == "images" else 4)
    manifest = Manifest.load(root)
    plan = Plan(manifest.counts, 3, data.lanes, data.block)
    steps = 2 * len(manifest) // 4
    requests = training_requests(plan, manifest, data, first_step=0, batch_size=12, micro_batch=6, rank=0, world_size=1)
    taken = list(islice(requests, 2 * steps))
    assert {(len(request.ids), len(request.keys), request.repeats) for request in taken} == {(2, 6, 3)}
    ids = np.concatenate([request.ids for request in taken])
    assert (np.bincount(ids) == 2).all() and len(ids) == 2 * len(manifest)
    keys = np.concatenate([request.keys for request in taken])
    assert len(set(keys.tolist())) == len(keys) == 3 * len(ids)
    boxes = np.concatenate([request.boxes for request in taken]).reshape(-1, 3, 4)
    assert (boxes[:, 0] != boxes[:, 1]).any(1).mean() > 0.9
    alone = settings(root, repeats=1, frames=data.frames)
    single = next(
        training_requests(plan, manifest, alone, first_step=0, batch_size=4, micro_batch=4, rank=0, world_size=1)
    )
    np.testing.assert_array_equal(single.ids, np.concatenate([request.ids for request in taken[:2]]))
    assert not set(single.keys.tolist()) & set(keys.tolist())


def test_an_input_of_several_is_made_with_a_key_of_its_own(shards: Path) -> None:
    """Crops of one image are those that its derived keys draw, each decoded as it would be alone."""
    manifest, data = Manifest.load(shards), settings(shards, repeats=3, frames=None)
    plan = Plan(manifest.counts, 3, data.lanes, data.block)
    requests = training_requests(
        plan, manifest, data, first_step=0, batch_size=12, micro_batch=12, rank=0, world_size=1
    )
    (batch,) = Loader(manifest, data, 12, CPU, repeats=3).batches(islice(requests, 1))
    request = batch.request
    keys = sample_keys(3, np.zeros_like(request.ids), request.ids)
    np.testing.assert_array_equal(request.keys.reshape(4, 3)[:, 2], derive(derive(keys, 2), 3))
    for number in range(12):
        here = slice(number, number + 1)
        single = replace(
            request,
            ids=request.input_ids[here],
            boxes=request.boxes[here],
            flips=request.flips[here],
            keys=request.keys[here],
            weights=request.weights[here],
        )
        (alone,) = Loader(manifest, data, 1, CPU).batches([single])
        assert torch.equal(alone.inputs[0], batch.inputs[number])


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_bad_video_weighs_nothing_in_all_its_slots(video_shards: Path, tmp_path: Path, repeats: int) -> None:
    data = settings(video_shards, repeats=repeats)
    good = by_input(batches_of(data, 8, 8, 5))
    copy = tmp_path / "copy"
    shutil.copytree(video_shards, copy)
    manifest = Manifest.load(copy)
    shard = copy / manifest.shard_names[1]
    content = bytearray(shard.read_bytes())
    content[int(manifest.offset[7]) + 40] ^= 255
    shard.write_bytes(content)
    hurt = batches_of(settings(copy, repeats=repeats), 8, 8, 5)
    for batch in hurt:
        slots = batch.request.input_ids == 7
        assert [sample.id for sample in batch.bad] == [7] * int(slots.any())
        assert (batch.weights.numpy() == ~slots).all() and not batch.inputs[slots].any()
    made = by_input(hurt)
    assert made.keys() == good.keys() and 7 in {sample for _, sample, _ in made}
    assert all(torch.equal(clip, good[place]) for place, clip in made.items() if place[1] != 7)


@pytest.mark.parametrize(("ranks", "samples"), [(1, 22), (2, 15), (3, 7)])
def test_validation_takes_the_middle_of_each_video_once(manifest: Manifest, ranks: int, samples: int) -> None:
    data = settings(Path("x"))
    clip = data.clip
    assert clip is not None and manifest.video is not None
    counted = []
    for rank in range(ranks):
        for request in validation_requests(
            manifest, data, samples=samples, micro_batch=4, rank=rank, world_size=ranks, seed=0
        ):
            ids = request.ids
            middle = placed_clips(manifest.video.frames[ids], manifest.video.rate[ids], clip)
            np.testing.assert_array_equal(request.frames, middle)
            counted += ids[request.weights > 0].tolist()
    assert sorted(counted) == list(range(samples))
    (request,) = centre_requests(manifest, data, 3, 6, 8, 0.875)
    np.testing.assert_array_equal(
        request.frames, placed_clips(manifest.video.frames[3:6], manifest.video.rate[3:6], clip)
    )


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("chosen", [views(4), views(2, 3), views(1) + views(3) + views(5)], ids=["4x1", "2x3", "lists"])
def test_each_view_of_each_video_is_made_once(manifest: Manifest, ranks: int, chosen: list[View]) -> None:
    data = settings(Path("x"))
    clip = data.clip
    assert clip is not None and manifest.video is not None
    counted = []
    for rank in range(ranks):
        requests = list(view_requests(manifest, data, chosen, samples=21, micro_batch=2, rank=rank, world_size=ranks))
        assert len(requests) == -(-21 // (2 * ranks))
        for request in requests:
            assert request.repeats == len(chosen) and request.frames is not None
            for number, sample in enumerate(request.input_ids.tolist()):
                view, one = chosen[number % len(chosen)], slice(sample, sample + 1)
                placed = placed_clips(manifest.video.frames[one], manifest.video.rate[one], clip, view.clip, view.clips)
                np.testing.assert_array_equal(request.frames[number], placed[0])
                box = view_boxes(Shapes.of(manifest, np.array([sample])), data, view)
                np.testing.assert_array_equal(request.boxes[number], box[0])
                if request.weights[number]:
                    counted.append((sample, number % len(chosen)))
    assert sorted(counted) == [(sample, view) for sample in range(21) for view in range(len(chosen))]


def test_crops_of_views_are_slowfasts() -> None:
    """`uniform_crop` of facebookresearch/SlowFast at 287ec00, where the short side need not be scaled."""
    heights, widths = np.array([224, 224, 341, 224], np.int32), np.array([341, 298, 224, 224], np.int32)
    lefts = [[0, 0, 0, 0], [59, 37, 0, 0], [117, 74, 0, 0]]
    tops = [[0, 0, 0, 0], [0, 0, 59, 0], [0, 0, 117, 0]]
    shapes, data = Shapes(heights, widths), settings(Path("x"))
    for crop in range(3):
        found = view_boxes(shapes, data, View(1, 0, 3, crop))
        np.testing.assert_array_equal(found, np.stack([tops[crop], lefts[crop], [224] * 4, [224] * 4], axis=1))
    assert CENTRE == 224 / 256
    one = Shapes(np.array([256], np.int32), np.array([340], np.int32))
    centre = view_boxes(one, data, View(10, 3))
    np.testing.assert_array_equal(centre, [[16, 58, 224, 224]])
    with pytest.raises(ValueError, match="1 crop or 3"):
        views(2, 2)


def test_the_views_of_a_video_come_from_one_decode(video_shards: Path, manifest: Manifest) -> None:
    data, chosen = settings(video_shards), views(3, 3)
    requests = view_requests(manifest, data, chosen, samples=6, micro_batch=2, rank=0, world_size=1)
    loader = Loader(manifest, data, 2 * len(chosen), CPU, repeats=len(chosen))
    made = torch.cat([batch.inputs for batch in loader.batches(requests)])
    assert made.shape == (6 * 9, 3, 4, 32, 32)
    single = view_requests(manifest, data, chosen[4:5], samples=6, micro_batch=2, rank=0, world_size=1)
    alone = torch.cat([batch.inputs for batch in Loader(manifest, data, 2, CPU).batches(single)])
    assert torch.equal(made[4::9], alone)


def test_images_are_clips_of_one_frame(shards: Path) -> None:
    clips = batches_of(settings(shards, frames=1), 6, 6, 2)
    images = batches_of(settings(shards, frames=None), 6, 6, 2)
    for clip, image in zip(clips, images, strict=True):
        assert clip.inputs.shape == (6, 3, 1, 32, 32)
        assert torch.equal(clip.inputs[:, :, 0], image.inputs)


def test_settings_and_samples_have_to_fit(shards: Path, video_shards: Path, videos: Path, tmp_path: Path) -> None:
    for root, frames, message in (
        (video_shards, None, "has videos: set data.frames"),
        (shards, 4, r"has images, and data\.frames=4 asks for clips of videos: give videos, or set data\.frames=1"),
    ):
        with pytest.raises(DataError, match=message):
            batches_of(settings(root, frames=frames), 4, 4, 1)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    shutil.copy(videos / "03.mp4", mixed)
    Image.new("RGB", (40, 40)).save(mixed / "a.png")
    build(mixed, tmp_path / "out", workers=1)
    with pytest.raises(DataError, match="has images and videos, but a batch has only one kind"):
        batches_of(settings(tmp_path / "out"), 2, 2, 1)
