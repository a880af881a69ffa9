"""Measure reading, decoding, and both, beside webdataset, Pillow, torchvision and bare DALI."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.figures import Figure
from benchmarks.hardware import synchronise
from benchmarks.peers import BATCH, CROP_SCALE, peers
from benchmarks.racing import ROUNDS, Rates, compare, race
from model.size import ImageSize
from pipeline.data.augment import random_flips, random_resized_crops, sample_keys
from pipeline.data.decode.decoder import Crops, Decoder, decoder_for
from pipeline.data.loader import Loader
from pipeline.data.plan import Plan
from pipeline.data.reader import Reader
from pipeline.data.request import training_requests
from pipeline.data.settings import Data
from shards.manifest import Manifest

LOADED = 40  # batches per round


def read(shards: Path, threads: int) -> list[Figure]:
    """Read from the page cache: ours, with checksums, and webdataset, through the tars in order."""
    import webdataset as wds

    manifest = Manifest.load(shards)
    reader = Reader(manifest, threads)
    order = np.random.default_rng(0).permutation(len(manifest)).astype(np.int64)
    tars = [manifest.shard_location(shard) for shard in range(len(manifest.counts))]

    def ours() -> int:
        batches = [reader.submit(order[start : start + BATCH]) for start in range(0, len(order), BATCH)]
        return sum(len(batch.result()) for batch in batches)

    def theirs() -> int:
        return sum(1 for _ in wds.WebDataset(tars, shardshuffle=False))

    rates = race({"ours": ours, "webdataset, in order, no checksums": theirs})
    return [compare("encoded images from the page cache", "images/s", rates)]


def decode(shards: Path, threads: int, size: int, device: torch.device, batch: int) -> list[Figure]:
    """Decode images in memory. On a CPU beside bare DALI; on a GPU without and with its JPEG hardware."""
    batches = encoded_batches(shards, batch)
    square = ImageSize.of(size)
    on_cpu = _decoding(decoder_for(torch.device("cpu"), batch, square, threads, 0), batches, torch.device("cpu"))
    if device.type == "cuda":
        decoders = {load: decoder_for(device, batch, square, threads, load) for load in (0, 1)}
        rates = race(
            {f"hw_decoder_load={load}": _decoding(own, batches, device) for load, own in decoders.items()}
            | {f"CPU, {threads} threads": on_cpu}
        )
        return [compare(f"crops of {size} px decoded on the GPU, hw_decoder_load=0", "images/s", rates)]
    with_resize, without = (_dali_alone(batches, threads, size, resize) for resize in (True, False))
    rates = race({"ours": on_cpu, "DALI with its own resize": with_resize, "DALI, crops not resized": without})
    return [compare(f"crops of {size} px, {threads} threads", "images/s", rates, limits=("DALI, crops not resized",))]


def encoded_batches(shards: Path, batch: int) -> list[Crops]:
    """Return up to eight batches of encoded images with random crops and flips; images are repeated if necessary."""
    manifest = Manifest.load(shards)
    ids = np.arange(max(1, min(len(manifest) // batch, 8)) * batch, dtype=np.int64) % len(manifest)
    images: Any = Reader(manifest).submit(ids).result()
    keys = sample_keys(0, np.zeros_like(ids), ids)
    boxes = random_resized_crops(keys, manifest.height[ids], manifest.width[ids], CROP_SCALE, (3 / 4, 4 / 3))
    flips = random_flips(keys)
    parts = [slice(start, start + batch) for start in range(0, len(ids), batch)]
    return [Crops(images[part], boxes[part], flips[part]) for part in parts]


def _decoding(decoder: Decoder, batches: list[Crops], device: torch.device) -> Callable[[], int]:
    def run() -> int:
        decoder.feed(batches[0])
        images = 0
        for following in [*batches[1:], None]:  # two in progress, as in training
            if following:
                decoder.feed(following)
            images += len(decoder.take().images)
        synchronise(device)
        return images

    return run


def _dali_alone(batches: list[Crops], threads: int, size: int, resize: bool) -> Callable[[], int]:
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import pipeline_def

    @pipeline_def(batch_size=len(batches[0].encoded), num_threads=threads, device_id=None, prefetch_queue_depth=1)  # type: ignore[untyped-decorator]
    def graph() -> Any:
        encoded = fn.external_source(name="encoded", ndim=1, dtype=types.UINT8)
        anchor = fn.external_source(name="anchor", ndim=1, dtype=types.INT32)
        shape = fn.external_source(name="shape", ndim=1, dtype=types.INT32)
        crops = fn.decoders.image_slice(encoded, anchor, shape, axes=(0, 1), output_type=types.RGB)
        return fn.resize(crops, size=(size, size), interp_type=types.INTERP_CUBIC, antialias=True) if resize else crops

    pipe = graph()
    pipe.build()

    def run() -> int:
        for crops in batches:
            pipe.feed_input("encoded", crops.encoded)
            pipe.feed_input("anchor", np.ascontiguousarray(crops.boxes[:, :2]))
            pipe.feed_input("shape", np.ascontiguousarray(crops.boxes[:, 2:]))
            pipe.schedule_run()
        return sum(len(pipe.outputs()[0]) for _ in batches)

    return run


def loader(shards: Path, threads: int, size: int) -> list[Figure]:
    """Compare our loader with Pillow and torchvision in DataLoaders of as many workers, from the page cache."""
    manifest = Manifest.load(shards)
    data = Data(shards=str(shards), image_size=size, crop_scale=CROP_SCALE, decode_threads=threads, lanes=1)
    plan = Plan(manifest.counts, lanes=1, block=len(manifest))
    own = Loader(manifest, data, BATCH, torch.device("cpu"))

    def ours() -> Iterator[Any]:
        requests = training_requests(
            plan, manifest, data, first_step=0, batch_size=BATCH, micro_batch=BATCH, rank=0, world_size=1
        )
        return own.batches(islice(requests, LOADED + 1))

    rounds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        contestants = {"ours": ours} | peers(manifest, threads, size, Path(scratch))
        for _ in range(ROUNDS):
            for name, start in contestants.items():  # each alone, from its own start
                batches = start()
                next(batches)
                begin = time.perf_counter()
                images = sum(BATCH for _ in islice(batches, LOADED))
                rounds.setdefault(name, []).append(images / (time.perf_counter() - begin))
                del batches
    rates: Rates = {name: statistics.median(values) for name, values in rounds.items()}
    return [compare(f"crops of {size} px from shards, {threads} threads or workers", "images/s", rates)]
