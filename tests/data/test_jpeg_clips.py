"""Clips of videos that are stored as JPEGs: exact frames and pixels, no more read than needed, and bad frames alone."""

import io
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from servers import http_server
from test_clip_batches import batches_of, by_input, settings

from model.size import ImageSize
from pipeline.data import batch as batching
from pipeline.data.decode.decoder import CpuDecoder, GpuDecoder
from pipeline.data.decode.graphs import Decoding
from pipeline.data.decode.jpegs import JpegClipDecoder, JpegClips
from pipeline.data.decode.queues import Decoder
from pipeline.data.plan import Plan
from pipeline.data.reader import Reader
from pipeline.data.request import training_requests
from shards.build import build
from shards.manifest import Manifest

CPU = torch.device("cpu")
SIZE = ImageSize(32, 48)
FPS = {"sampling": "fps", "fps": 5}


@pytest.fixture(scope="module")
def manifest(jpeg_shards: Path) -> Manifest:
    return Manifest.load(jpeg_shards)


def stored(root: Path, sample: int) -> list[bytes]:
    """Cut the JPEGs of a video out of its tar, by the manifest as it is on disk."""
    row = pq.read_table(root / "manifest.parquet").slice(sample, 1).to_pylist()[0]
    tar = (root / Manifest.load(root).shard_names[row["shard"]]).read_bytes()
    places = row["offset"] + row["jpeg_offset"] + np.cumsum([0, *row["jpeg_sizes"]])
    return [tar[begin : begin + size] for begin, size in zip(places.tolist(), row["jpeg_sizes"], strict=False)]


def by_pillow(jpegs: list[bytes], frames: NDArray[np.int32], box: NDArray[np.int32], flip: int) -> torch.Tensor:
    """Make a clip, uint8 (3, T, size, size), of whole frames that Pillow decodes."""
    top, left, height, width = box.tolist()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(jpegs[frame]))) for frame in frames])
    crop = torch.from_numpy(pixels)[:, top : top + height, left : left + width].permute(0, 3, 1, 2)
    clip = F.interpolate(crop, SIZE, mode="bicubic", antialias=True)
    return (clip.flip(-1) if flip else clip).permute(1, 0, 2, 3)


@pytest.mark.parametrize("options", [{}, {"sampling": "nominal"}, FPS, {"sampling": "segments"}])
@pytest.mark.parametrize("repeats", [1, 3])
def test_pixels_are_those_of_the_jpegs_of_the_frames_of_the_original(
    video_shards: Path, jpeg_shards: Path, options: dict[str, object], repeats: int
) -> None:
    options = {"sampling": "stride", "repeats": repeats, **options}
    wide = options | {"image_size": SIZE}
    originals = batches_of(settings(video_shards, **wide), 12, 6, 2)
    for made, original in zip(batches_of(settings(jpeg_shards, **wide), 12, 6, 2), originals, strict=True):
        request = made.request
        np.testing.assert_array_equal(request.frames, original.request.frames)
        np.testing.assert_array_equal(request.boxes, original.request.boxes)
        assert torch.equal(made.keys, original.keys) and request.frames is not None
        assert (made.inputs.shape, made.inputs.dtype) == ((6, 3, 4, *SIZE), torch.uint8)
        for number, sample in enumerate(request.input_ids.tolist()):
            expected = by_pillow(
                stored(jpeg_shards, sample), request.frames[number], request.boxes[number], request.flips[number]
            )
            assert torch.equal(made.inputs[number], expected)


def test_clips_do_not_depend_on_ranks_micro_batches_and_threads(jpeg_shards: Path) -> None:
    alone = by_input(batches_of(settings(jpeg_shards, repeats=2), 12, 12, 4))
    changed = settings(jpeg_shards, repeats=2, decode_threads=1, read_threads=1)
    parts = [by_input(batches_of(changed, 12, 2, 4, rank, 2)) for rank in range(2)]
    together = parts[0] | parts[1]
    assert together.keys() == alone.keys() and len(alone) == 48
    assert all(torch.equal(together[key], clip) for key, clip in alone.items())


def test_with_a_stride_clips_are_of_the_frames_that_are_stored(videos: Path, jpeg_shards: Path, tmp_path: Path) -> None:
    """Every second frame of every second frame is every fourth; the rate says so to what counts seconds."""
    build(videos, tmp_path / "half", samples_per_shard=5, workers=1, frames="jpeg", frame_stride=2)
    whole, half = Manifest.load(jpeg_shards), Manifest.load(tmp_path / "half")
    assert whole.video is not None and half.video is not None
    long = whole.video.frames > 2
    np.testing.assert_array_equal(half.video.frames, (whole.video.frames + 1) // 2)
    np.testing.assert_allclose(half.video.rate[long], whole.video.rate[long] / 2)
    data = settings(tmp_path / "half", image_size=SIZE, stride=2, flip=False, crop_scale=(1, 1))
    for batch in batches_of(data, 4, 4, 4):
        for sample, frames, clip, box in zip(
            batch.request.ids.tolist(), batch.request.frames, batch.inputs, batch.request.boxes, strict=True
        ):
            assert torch.equal(clip, by_pillow(stored(jpeg_shards, sample), 2 * frames, box, 0))


def clips_of(manifest: Manifest, root: Path, repeats: int, seed: int = 0) -> JpegClips:
    """Random clips of six videos, the last frame of some repeated."""
    rng = np.random.default_rng(seed)
    frames, boxes, encoded, sizes = [], [], [], []
    for sample in range(6):
        jpegs = stored(root, sample)
        of_sample = np.minimum(np.sort(rng.integers(0, len(jpegs) + 4, (repeats, 4))), len(jpegs) - 1)
        frames.append(of_sample)
        encoded.append(np.frombuffer(b"".join(jpegs[frame] for frame in np.unique(of_sample)), np.uint8))
        sizes.append(np.array([len(jpeg) for jpeg in jpegs], np.int32))
        for _ in range(repeats):
            height, width = (rng.integers(20, side + 1) for side in (manifest.height[sample], manifest.width[sample]))
            boxes.append((manifest.height[sample] - height, manifest.width[sample] - width, height, width))
    flips = rng.integers(0, 2, len(boxes), dtype=np.int32)
    return JpegClips(encoded, np.array(boxes, np.int32), flips, np.concatenate(frames).astype(np.int32), sizes)


def decoder(kind: str, repeats: int) -> Decoder:
    most = 6 * repeats * 4
    images = CpuDecoder(most, SIZE, 2) if kind == "CPU" else GpuDecoder(most, SIZE, CPU, 2, Decoding())
    return JpegClipDecoder(images)


@pytest.mark.parametrize("kind", ["CPU", "graph"])
@pytest.mark.parametrize("repeats", [1, 3])
def test_both_decoders_make_the_clips(manifest: Manifest, jpeg_shards: Path, kind: str, repeats: int) -> None:
    """The graph resizes otherwise in low bits; another frame would differ by far more."""
    batch, one = clips_of(manifest, jpeg_shards, repeats), decoder(kind, repeats)
    one.feed(batch)
    decoded = one.take()
    assert not decoded.problems and decoded.images.shape == (6 * repeats, 3, 4, *SIZE)
    for number, clip in enumerate(decoded.images):
        jpegs = stored(jpeg_shards, number // repeats)
        expected = by_pillow(jpegs, batch.frames[number], batch.boxes[number], batch.flips[number])
        assert (clip.float() - expected.float()).abs().mean() < (0.001 if kind == "CPU" else 1)
        if (batch.frames[number] > 0).all():
            earlier = by_pillow(jpegs, batch.frames[number] - 1, batch.boxes[number], batch.flips[number])
            assert (clip.float() - earlier.float()).abs().mean() > 4
    one.close()


@pytest.mark.parametrize("kind", ["CPU", "graph"])
@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("bad", ["torn", "unread", "box"])
def test_a_bad_frame_takes_the_clips_of_its_video_and_no_other(
    manifest: Manifest, jpeg_shards: Path, kind: str, repeats: int, bad: str
) -> None:
    batch, one = clips_of(manifest, jpeg_shards, repeats), decoder(kind, repeats)
    one.feed(batch)
    good = one.take().images.clone()
    encoded, boxes = list(batch.encoded), batch.boxes.copy()
    first = encoded[2]
    assert first is not None
    frame = np.unique(batch.frames.reshape(6, -1)[2])[0]
    if bad == "box":
        boxes[2 * repeats] = (0, 0, 1000, 1000)
        frame = batch.frames[2 * repeats, 0]
    else:
        torn = first.copy()
        torn[: batch.sizes[2][frame]] = 0
        encoded[2] = torn if bad == "torn" else None
    one.feed(JpegClips(encoded, boxes, batch.flips, batch.frames, batch.sizes))
    one.feed(batch)
    decoded = one.take()
    assert decoded.problems.keys() == (set() if bad == "unread" else {2})
    assert bad == "unread" or decoded.problems[2].startswith(f"frame {frame}: ")
    slots = torch.arange(len(good)) // repeats == 2
    assert not decoded.images[slots].any() and torch.equal(decoded.images[~slots], good[~slots])
    assert torch.equal(one.take().images, good)
    one.close()


@pytest.mark.parametrize("repeats", [1, 2])
def test_damage_costs_the_clips_that_have_the_frame(jpeg_shards: Path, tmp_path: Path, repeats: int) -> None:
    """A byte of the middle frame of one video is wrong: clips with other frames of that video stay as they are."""
    data = settings(jpeg_shards, repeats=repeats)
    good = by_input(batches_of(data, 8, 8, 12))
    copy = shutil.copytree(jpeg_shards, tmp_path / "copy")
    row = pq.read_table(copy / "manifest.parquet").slice(7, 1).to_pylist()[0]
    frame = row["frames"] // 2
    shard = copy / Manifest.load(copy).shard_names[row["shard"]]
    content = bytearray(shard.read_bytes())
    content[row["offset"] + row["jpeg_offset"] + sum(row["jpeg_sizes"][:frame]) + 300] ^= 255
    shard.write_bytes(content)
    hurt, seen = batches_of(settings(copy, repeats=repeats), 8, 8, 12), set()
    for batch in hurt:
        ids, frames = batch.request.ids, batch.request.frames
        assert frames is not None
        has_frame = (ids == 7) & (frames.reshape(len(ids), -1) == frame).any(1)
        slots = has_frame.repeat(repeats)
        seen |= set(has_frame[ids == 7].tolist())
        assert [sample.id for sample in batch.bad] == [7] * int(has_frame.any())
        assert all(sample.reason.endswith(f"frame {frame} does not match its checksum") for sample in batch.bad)
        assert (batch.weights.numpy() == ~slots).all() and not batch.inputs[slots].any()
        for key, clip in by_input([batch]).items():
            assert key[1] == 7 or torch.equal(clip, good[key])
        if not has_frame.any():
            assert all(torch.equal(clip, good[key]) for key, clip in by_input([batch]).items())
    assert seen == {True, False}


def test_no_more_is_read_than_the_frames_of_a_clip(jpeg_shards: Path, manifest: Manifest) -> None:
    """By range requests: one a video where its frames lie close together, whatever the number of clips."""
    data = settings(jpeg_shards, repeats=2)
    plan = Plan(manifest.counts, 3, data.lanes, data.block)
    (request,) = islice(
        training_requests(plan, manifest, data, first_step=0, batch_size=12, micro_batch=12, rank=0, world_size=1),
        1,
    )
    frames = request.frames
    assert frames is not None
    with http_server(jpeg_shards) as server:
        reader = Reader(Manifest.load(server.url))
        before = reader.counters()
        read = reader.submit(request.ids, frames).result()
        used = {name: value - before[name] for name, value in reader.counters().items()}
    spans = 0
    for sample, found, clips in zip(request.ids.tolist(), read, frames.reshape(6, -1), strict=True):
        jpegs = stored(jpeg_shards, sample)
        assert not isinstance(found, str)
        assert found.tobytes() == b"".join(jpegs[frame] for frame in np.unique(clips))
        spans += sum(map(len, jpegs[clips.min() : clips.max() + 1]))
    assert (used["requests"], used["bytes"]) == (len(request.ids), spans)
    assert spans < 0.7 * manifest.size[request.ids].sum()


def test_no_videos_have_to_be_decoded(jpeg_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyAV is not needed, either."""
    monkeypatch.setattr(batching, "clip_decoder_for", None)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    assert len(batches_of(settings(jpeg_shards), 4, 4, 1)) == 1
