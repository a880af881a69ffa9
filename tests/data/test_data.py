"""Reader, decoder and loader on real shards: right bytes, pixels and order, whatever the batch and the rank."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.size import ImageSize
from pipeline.data.augment import centre_crops
from pipeline.data.batch import Batch
from pipeline.data.decode.decoder import CpuDecoder, Crops, GpuDecoder
from pipeline.data.decode.graphs import Decoding
from pipeline.data.loader import Loader
from pipeline.data.plan import Plan
from pipeline.data.quarantine import BadRowLimit, BadSample, TooManyBad, too_many
from pipeline.data.reader import Encoded, Reader
from pipeline.data.request import training_requests, validation_requests
from pipeline.data.settings import Data
from shards.manifest import Manifest

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def manifest(shards: Path) -> Manifest:
    return Manifest.load(shards)


def settings(shards: Path, **changes: object) -> Data:
    return Data.model_validate({"shards": str(shards), "image_size": 32, "decode_threads": 1, **changes})


def training_batches(
    shards: Path, manifest: Manifest, micro_batch: int, steps: int, rank: int, ranks: int
) -> list[Batch]:
    data = settings(shards)
    plan = Plan(manifest.counts, seed=3, lanes=4, block=32)
    requests = training_requests(
        plan, manifest, data, first_step=0, batch_size=24, micro_batch=micro_batch, rank=rank, world_size=ranks
    )
    taken = (next(requests) for _ in range(steps * 24 // ranks // micro_batch))
    return list(Loader(manifest, data, micro_batch, CPU).batches(taken))


def encoded(manifest: Manifest, ids: Iterable[int]) -> list[Encoded]:
    """The images of these samples, all of them good."""
    samples = Reader(manifest).submit(np.array(ids)).result()
    assert not any(isinstance(sample, str) for sample in samples), samples
    return samples


def by_sample(batches: list[Batch]) -> dict[tuple[int, int], tuple[torch.Tensor, int]]:
    """Return pixels and mask key by (step, id)."""
    return {
        (batch.request.step, int(sample)): (image, int(key))
        for batch in batches
        for sample, image, key in zip(batch.request.ids, batch.inputs, batch.keys, strict=True)
    }


def test_reader_returns_the_source_files(manifest: Manifest, images: Path) -> None:
    for sample, data in enumerate(encoded(manifest, range(len(manifest)))):
        assert data.tobytes() == (images / manifest.path(sample)).read_bytes()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("flip", "does not match its checksum"),
        ("truncate", "ends inside the sample"),
        ("remove", "No such file"),
        ("replace", "does not match its checksum"),
    ],
)
def test_samples_of_a_damaged_shard_say_why_and_the_others_are_unharmed(
    shards: Path, tmp_path: Path, damage: str, reason: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    manifest = Manifest.load(copy)
    good = encoded(manifest, range(len(manifest)))
    shard = copy / manifest.shard_names[0]
    start = int(manifest.offset[3])
    data = bytearray(shard.read_bytes())
    if damage == "flip":
        data[start + 20] ^= 1
    elif damage == "truncate":
        del data[start + 20 :]
    elif damage == "replace":
        data = bytearray((copy / manifest.shard_names[1]).read_bytes())
    shard.unlink()
    if damage != "remove":
        shard.write_bytes(data)
    hurt = {"flip": {3}, "truncate": set(range(3, 16))}.get(damage, set(range(16)))
    for sample, read in enumerate(Reader(manifest).submit(np.arange(len(manifest))).result()):
        if sample in hurt:
            assert isinstance(read, str) and str(shard) in read and reason in read
        else:
            assert not isinstance(read, str) and read.tobytes() == good[sample].tobytes()


def test_open_files_are_bounded_and_shared_by_threads(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many threads, six shards, room for two: no descriptor is closed under a reader's hands, and none is left."""
    monkeypatch.setattr("pipeline.data.reader._OPEN_SHARDS", 2)
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    reader = Reader(manifest, threads=8)
    for _ in range(20):
        futures = [reader.submit(np.arange(start, len(manifest), 8)) for start in range(8)]
        assert sum(len(future.result()) for future in futures) == len(manifest)
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) <= before + 2


@pytest.mark.parametrize("size", [ImageSize(32, 32), ImageSize(64, 96)], ids=str)
def test_decoder_crops_resizes_and_flips(manifest: Manifest, images: Path, size: ImageSize) -> None:
    """Compare with Pillow's crop and bicubic resize, within the rounding of JPEG decoders and filters."""
    ids = np.arange(8)
    boxes = centre_crops(manifest.height[ids], manifest.width[ids], (size.aspect, size.aspect))
    flips = (ids % 2).astype(np.int32)
    decoder = CpuDecoder(8, size, threads=1)
    decoder.feed(Crops(encoded(manifest, ids), boxes, flips))
    decoded = decoder.take()
    pixels = decoded.images
    assert (pixels.shape, pixels.dtype) == ((8, 3, *size), torch.uint8)
    assert not decoded.problems
    for sample, (top, left, height, width), flip, ours in zip(ids, boxes, flips, pixels, strict=True):
        image = Image.open(images / manifest.path(int(sample))).convert("RGB")
        image = image.crop((left, top, left + width, top + height)).resize(size[::-1], Image.Resampling.BICUBIC)
        theirs = np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image).astype(float)
        assert np.abs(ours.permute(1, 2, 0).numpy() - theirs).mean() < 1.0


def test_exif_rotation_is_applied_before_the_crop(tmp_path: Path) -> None:
    from shards.build import build

    source = tmp_path / "source"
    source.mkdir()
    pixels = np.zeros((40, 80, 3), dtype=np.uint8)
    pixels[:, 40:] = 255  # turned by 90 degrees clockwise: dark above, bright below
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(source / "turned.jpg", quality=95, exif=exif)
    build(source, tmp_path / "out", workers=1)
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.height[0], manifest.width[0]) == (80, 40)
    decoder = CpuDecoder(1, ImageSize(16, 16), threads=1)
    boxes, flips = np.array([[0, 0, 80, 40]], dtype=np.int32), np.zeros(1, dtype=np.int32)
    decoder.feed(Crops(encoded(manifest, [0]), boxes, flips))
    image = decoder.take().images[0].float().mean(0)
    assert image[:6].max() < 20 and image[-6:].min() > 235


@pytest.mark.parametrize("bad", ["header", "body", "unread", "box"])
@pytest.mark.parametrize("kind", ["CPU", "regions", "whole"])
def test_a_bad_image_is_black_and_named_and_all_others_keep_their_pixels(
    manifest: Manifest, kind: str, bad: str
) -> None:
    ids = np.arange(6)
    images: list[Encoded | None] = list(encoded(manifest, ids))
    boxes, flips = centre_crops(manifest.height[ids], manifest.width[ids]), (ids % 2).astype(np.int32)
    size, decoding = ImageSize(32, 32), Decoding(regions=kind == "regions")
    decoder = CpuDecoder(6, size, 1) if kind == "CPU" else GpuDecoder(6, size, CPU, 1, decoding)
    decoder.feed(Crops(images, boxes, flips))
    expected = decoder.take().images.clone()

    hurt, hurt_boxes = list(images), boxes.copy()
    assert images[4] is not None
    if bad == "box":
        hurt_boxes[4] = (0, 0, 1000, 1000)
    else:
        hurt[4] = {"header": images[4][5:], "body": images[4][: len(images[4]) // 2], "unread": None}[bad]
    decoder.feed(Crops(hurt, hurt_boxes, flips))
    decoder.feed(Crops(images, boxes, flips))
    decoded = decoder.take()
    assert decoded.problems.keys() == (set() if bad == "unread" else {4})
    assert (decoded.images[4] == 0).all()
    others = [0, 1, 2, 3, 5]
    assert torch.equal(decoded.images[others], expected[others])
    assert torch.equal(decoder.take().images, expected)


def test_bad_samples_in_a_row_reach_their_limit() -> None:
    def sample(step: int) -> BadSample:
        return BadSample(step, 7, "it is torn")

    limit = BadRowLimit(3, "mend it")
    limit.check([sample(0), sample(0), None, sample(0), sample(0)])
    with pytest.raises(TooManyBad, match=r"3 bad samples in a row.* step 9, sample 7: it is torn; mend it") as error:
        limit.check([sample(9), None])
    assert error.value.bad == [sample(9)]


@pytest.mark.parametrize("ranks", [1, 16, 64])
def test_one_missing_shard_of_imagenet_is_put_up_with(ranks: int) -> None:
    """Judged every 20 steps of an epoch, and in a row on every rank, as the defaults have it."""
    plan = Plan([1000] * 1281)
    defaults = Data(shards="set")
    limits = [BadRowLimit(defaults.bad_in_a_row, "") for _ in range(ranks)]
    bad = 0
    for step in range(626):
        hurt = plan.batch(step, 2048) // 1000 == 77
        bad += int(hurt.sum())
        for rank, part in enumerate(hurt.reshape(ranks, -1)):
            if hurt.any():
                limits[rank].check([BadSample(step, 0, "") if is_bad else None for is_bad in part])
        if step % 20 == 19:
            assert not too_many(bad, (step + 1) * 2048, defaults.bad_in_a_row, defaults.bad_share)
    assert bad == 1000
    assert too_many(101, 1000, 100, 0.01) and not too_many(100, 1000, 100, 0.01) and too_many(1001, 10**5, 100, 0.01)


def test_kept_batches_are_not_overwritten(manifest: Manifest, shards: Path) -> None:
    """Outputs are DALI's own memory, not copies: it must not be used again while torch holds it."""
    kept = training_batches(shards, manifest, micro_batch=12, steps=6, rank=0, ranks=1)
    again = training_batches(shards, manifest, micro_batch=12, steps=6, rank=0, ranks=1)
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(kept, again, strict=True))
    assert len({batch.inputs.data_ptr() for batch in kept}) == len(kept)


@pytest.mark.parametrize(("ranks", "micro_batch"), [(2, 12), (2, 3), (4, 6), (8, 3), (3, 8), (1, 2)])
def test_pixels_do_not_depend_on_ranks_and_micro_batches(
    shards: Path, manifest: Manifest, ranks: int, micro_batch: int
) -> None:
    alone = by_sample(training_batches(shards, manifest, micro_batch=24, steps=8, rank=0, ranks=1))
    parts = [by_sample(training_batches(shards, manifest, micro_batch, 8, rank, ranks)) for rank in range(ranks)]
    together = {key: value for part in parts for key, value in part.items()}
    assert together.keys() == alone.keys()
    for key, (image, mask_key) in alone.items():
        assert torch.equal(together[key][0], image)
        assert together[key][1] == mask_key


def test_a_rank_takes_its_contiguous_part_of_the_plan(shards: Path, manifest: Manifest) -> None:
    plan = Plan(manifest.counts, seed=3, lanes=4, block=32)
    for rank in range(4):
        for batch in training_batches(shards, manifest, micro_batch=6, steps=5, rank=rank, ranks=4):
            whole = plan.batch(batch.request.step, 24)
            np.testing.assert_array_equal(batch.request.ids, whole[rank * 6 : rank * 6 + 6])


@pytest.mark.parametrize(("ranks", "micro_batch", "samples"), [(1, 16, 90), (2, 16, 90), (3, 7, 50), (2, 8, 5)])
def test_validation_counts_every_sample_once(manifest: Manifest, ranks: int, micro_batch: int, samples: int) -> None:
    data = settings("unread")
    per_rank = [
        list(
            validation_requests(
                manifest, data, samples=samples, micro_batch=micro_batch, rank=rank, world_size=ranks, seed=0
            )
        )
        for rank in range(ranks)
    ]
    assert len({len(requests) for requests in per_rank}) == 1
    requests = [request for part in per_rank for request in part]
    assert {len(request.ids) for request in requests} == {micro_batch}
    counted = np.concatenate([request.ids[request.weights > 0] for request in requests])
    np.testing.assert_array_equal(np.sort(counted), np.arange(samples))
