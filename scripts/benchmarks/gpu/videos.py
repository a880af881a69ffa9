"""Item 10: check that a GPU decodes the same frames as a CPU, and that a bad video affects only itself."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.films import ENCODINGS, STORED, encoded, film, make_set, pictures
from benchmarks.gpu.results import Bench, Check, LeftOut, Result
from model.size import ImageSize
from pipeline.data.augment import random_flips, random_resized_crops, sample_keys
from pipeline.data.clips import random_clips
from pipeline.data.decode.graphs import Clips
from pipeline.data.decode.queues import Decoder
from pipeline.data.decode.video import CpuClipDecoder, GpuClipDecoder
from pipeline.data.reader import Reader
from pipeline.data.settings import Clip
from shards.build import build
from shards.manifest import Manifest

BOUND = 4.0  # of 255, mean of a frame: decoders convert chroma with other filters, on a CPU 0.85 apart
_ON_CPU = {"VP8", "VP9", "MJPEG"}  # codecs that DALI decodes without a GPU
_SOME_GPUS = {"AV1"}  # codecs that A100 and H100 do not decode


def videos_of(bench: Bench) -> Path:
    """Return the data set of videos, which is made first if none was given."""
    if not (bench.videos / "dataset.json").exists():
        how = ENCODINGS["VP9"] if bench.scale.dry else STORED
        make_set(bench.shards, bench.videos, how, bench.scale.films, *bench.scale.film)
    return bench.videos


def clips_of(videos: Path, count: int, clip: Clip, seed: int = 0) -> Clips:
    """Draw clips of encoded videos in memory: one per video, repeatedly if there are more clips."""
    manifest = Manifest.load(videos)
    assert manifest.video is not None
    ids = np.arange(count, dtype=np.int64) % len(manifest)
    read = Reader(manifest).submit(ids).result()
    keys = sample_keys(seed, np.arange(count, dtype=np.int64) // len(manifest), ids)
    frames = random_clips(keys, manifest.video.frames[ids], manifest.video.rate[ids], clip)
    boxes = random_resized_crops(keys, manifest.height[ids], manifest.width[ids], (0.5, 1.0), (3 / 4, 4 / 3))
    stamps = np.stack([manifest.video.time_stamps(i)[of] for i, of in zip(ids.tolist(), frames, strict=True)])
    encoded = [None if isinstance(data, str) else data for data in read]
    return Clips(encoded, boxes, random_flips(keys), frames, stamps)


def exact_frames(bench: Bench) -> Iterator[Result]:
    """Identify the frames of a clip of each kind of file among all frames that a CPU decodes."""
    scale = bench.scale
    size, most = scale.check_size, scale.film[0] // 2
    (picture,) = pictures(bench.shards, 1)
    frames = film(picture, most, *scale.film[1:])
    if scale.dry:
        skipped = [name for name in ENCODINGS if name not in _ON_CPU]
        yield LeftOut(f"frames by NVDEC of {'; '.join(skipped)}: PyAV stands in", "there is no GPU")
    for number, (name, how) in enumerate(ENCODINGS.items()):
        folder = bench.videos.with_name(f"kind-{number}")
        (folder / "files").mkdir(parents=True)
        (folder / "files" / f"film.{how.container}").write_bytes(encoded(frames, how))
        build(folder / "files", folder / "set", workers=1)
        wanted = clips_of(folder / "set", 1, Clip(scale.clip_frames, "segments", 1, None))
        decoder: Decoder = CpuClipDecoder(size, 1)
        if not scale.dry or name in _ON_CPU:
            decoder = GpuClipDecoder(1, scale.clip_frames, size, scale.device, 2)
        with closing(decoder):
            decoder.feed(wanted)
            made = decoder.take()
        if made.problems and name in _SOME_GPUS:
            yield LeftOut(f"frames of {name}", f"this GPU does not decode it: {made.problems[0]}")
            continue
        found, off = _nearest(made.images[0], _all_frames(folder / "set", wanted, size))
        right = not made.problems and found == wanted.frames[0].tolist() and max(off) <= BOUND
        numbers = {"wanted": wanted.frames[0].tolist(), "found": found, "off by, mean of the worst frame": max(off)}
        yield Check(f"frames of {name}", right, numbers | {"bound": BOUND, "problems": made.problems})


def _all_frames(videos: Path, like: Clips, size: ImageSize) -> Tensor:
    """Return all frames of the first video, cropped and flipped as a clip, as a CPU decodes them: (3, frames, ...)."""
    manifest = Manifest.load(videos)
    assert manifest.video is not None
    stamps = manifest.video.time_stamps(0)
    every = replace(like, frames=np.arange(len(stamps), dtype=np.int32)[None], stamps=stamps[None])
    with closing(CpuClipDecoder(size, 1)) as decoder:
        decoder.feed(every)
        return decoder.take().images[0]


def _nearest(clip: Tensor, frames: Tensor) -> tuple[list[int], list[float]]:
    """Return for each frame of a clip the number of the most similar frame, and the mean difference."""
    ours, theirs = (pixels.cpu().float().transpose(0, 1).flatten(1) for pixels in (clip, frames))
    off = torch.cdist(ours, theirs, p=1) / ours.shape[1]
    least = off.min(1)
    return least.indices.tolist(), least.values.tolist()


def bad_video(bench: Bench) -> Iterator[Result]:
    """Check that a truncated or invalid video affects only itself, not the rest of the batch."""
    scale = bench.scale
    clips = clips_of(videos_of(bench), scale.check_images, Clip(scale.clip_frames, "nominal", 4, None))
    decoder = GpuClipDecoder(scale.check_images, scale.clip_frames, scale.check_size, scale.device, 2)
    decoder.feed(clips)
    whole = decoder.take().images.cpu()
    bad = scale.check_images // 2
    others = torch.arange(len(whole)) != bad
    good = clips.encoded[bad]
    assert good is not None
    for name, data in {"cut off": good[: len(good) // 2], "no video": np.full(1000, 255, np.uint8)}.items():
        decoder.feed(replace(clips, encoded=[*clips.encoded[:bad], data, *clips.encoded[bad + 1 :]]))
        decoder.feed(clips)
        rescued, after = decoder.take(), decoder.take()
        same = torch.equal(rescued.images.cpu()[others], whole[others]) and torch.equal(after.images.cpu(), whole)
        numbers = {"problems": rescued.problems, "others the same": same}
        right = list(rescued.problems) == [bad] and same and not rescued.images[bad].any()
        yield Check(f"rescue of a bad video, {name}", right, numbers)
