"""Reading, decoding, and both: side by side with webdataset, Pillow, torchvision and DALI alone."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers import BATCH, CROP_SCALE, peers
from benchmarks.racing import ROUNDS, Rates, race
from pipeline.config import Data
from pipeline.data.augment import random_flips, random_resized_crops, sample_keys
from pipeline.data.decode import Crops, decoder_for
from pipeline.data.loader import Loader
from pipeline.data.plan import Plan
from pipeline.data.reader import Reader
from pipeline.data.request import training_requests
from shards.manifest import Manifest

LOADED = 40  # batches a round


def read(arguments: argparse.Namespace) -> Rates:
    """Encoded images a second from the page cache: ours, comparing checksums, and webdataset's way through the tars."""
    import webdataset as wds

    manifest = Manifest.load(arguments.folder)
    reader = Reader(manifest, arguments.threads)
    order = np.random.default_rng(0).permutation(len(manifest)).astype(np.int64)
    tars = [manifest.shard_location(shard) for shard in range(len(manifest.counts))]

    def ours() -> int:
        batches = [reader.submit(order[start : start + BATCH]) for start in range(0, len(order), BATCH)]
        return sum(len(batch.result()) for batch in batches)

    def theirs() -> int:
        return sum(1 for _ in wds.WebDataset(tars, shardshuffle=False))

    return race({"this reader": ours, "webdataset, in order, no checksums": theirs})


def decode(arguments: argparse.Namespace) -> Rates:
    """Crops a second from encoded images in memory: ours, and DALI alone with and without its own resize."""
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import pipeline_def

    manifest, size = Manifest.load(arguments.folder), arguments.size
    ids = np.arange(min(len(manifest), BATCH * 8), dtype=np.int64)
    images: Any = Reader(manifest).submit(ids).result()
    keys = sample_keys(0, np.zeros_like(ids), ids)
    boxes = random_resized_crops(keys, manifest.height[ids], manifest.width[ids], CROP_SCALE, (3 / 4, 4 / 3))
    flips = random_flips(keys)
    parts = [slice(start, start + BATCH) for start in range(0, len(ids) - BATCH + 1, BATCH)]
    own = decoder_for(torch.device("cpu"), BATCH, size, arguments.threads, 0)

    def ours() -> int:
        for part in parts:
            own.feed(Crops(images[part], boxes[part], flips[part]))
        return sum(len(own.take().images) for _ in parts)

    @pipeline_def  # type: ignore[untyped-decorator]
    def graph(resize: bool) -> Any:
        encoded = fn.external_source(name="encoded", ndim=1, dtype=types.UINT8)
        anchor = fn.external_source(name="anchor", ndim=1, dtype=types.INT32)
        shape = fn.external_source(name="shape", ndim=1, dtype=types.INT32)
        crops = fn.decoders.image_slice(encoded, anchor, shape, axes=(0, 1), output_type=types.RGB)
        return fn.resize(crops, size=(size, size), interp_type=types.INTERP_CUBIC, antialias=True) if resize else crops

    def dali(resize: bool) -> Callable[[], int]:
        pipe = graph(resize, batch_size=BATCH, num_threads=arguments.threads, device_id=None, prefetch_queue_depth=1)
        pipe.build()

        def run() -> int:
            for part in parts:
                pipe.feed_input("encoded", images[part])
                pipe.feed_input("anchor", np.ascontiguousarray(boxes[part, :2]))
                pipe.feed_input("shape", np.ascontiguousarray(boxes[part, 2:]))
                pipe.schedule_run()
            return sum(len(pipe.outputs()[0]) for _ in parts)

        return run

    return race({"this decoder": ours, "DALI with its own resize": dali(True), "DALI, crops not resized": dali(False)})


def loader(arguments: argparse.Namespace) -> Rates:
    """Crops a second: our loader, and others with Pillow and torchvision in a DataLoader of as many workers."""
    manifest, size = Manifest.load(arguments.folder), arguments.size
    data = Data(
        shards=str(arguments.folder), image_size=size, crop_scale=CROP_SCALE, decode_threads=arguments.threads, lanes=1
    )
    plan = Plan(manifest.counts, lanes=1, block=len(manifest))
    own = Loader(manifest, data, BATCH, torch.device("cpu"))

    def ours() -> Iterator[Any]:
        requests = training_requests(
            plan, manifest, data, first_step=0, batch_size=BATCH, micro_batch=BATCH, rank=0, world_size=1
        )
        return own.batches(islice(requests, LOADED + 1))

    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        contestants = {"this loader": ours} | peers(manifest, arguments.threads, size, Path(scratch))
        for _ in range(ROUNDS):
            for name, start in contestants.items():  # each alone, from its own start
                batches = start()
                next(batches)
                begin = time.perf_counter()
                images = sum(BATCH for _ in islice(batches, LOADED))
                rates.setdefault(name, []).append(images / (time.perf_counter() - begin))
                del batches
    return {name: statistics.median(values) for name, values in rates.items()}
