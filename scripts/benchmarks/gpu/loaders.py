"""Item 7: measure the loader alone, beside alternatives, and the masks."""

import os
import time
from collections.abc import Callable, Iterator
from itertools import islice
from statistics import median
from typing import Any

import torch

from benchmarks.data import decode
from benchmarks.gpu.results import Bench, Failure, Result
from benchmarks.hardware import synchronise
from benchmarks.peers import CROP_SCALE, webdataset_on_tensors
from benchmarks.racing import compare
from benchmarks.targets import masks
from pipeline.data.loader import Loader
from pipeline.data.plan import Plan
from pipeline.data.request import training_requests
from pipeline.data.settings import Data
from shards.manifest import Manifest

Start = Callable[[], Iterator[torch.Tensor]]  # uint8 batches on the device, without end

_WARM = 8  # batches before the clock starts, which a loader has ready
_TIMED = 40


def loaders(bench: Bench) -> Iterator[Result]:
    """Measure crops from shards on the device: ours, bare DALI, and webdataset with torchvision."""
    scale = bench.scale
    cores = 1 if scale.dry else len(os.sched_getaffinity(0))
    manifest = Manifest.load(bench.shards)
    contestants: dict[str, Callable[[], Start]] = {
        "ours": lambda: _ours(bench, manifest, cores),
        "bare DALI": lambda: _dali(bench, manifest, cores),
        "webdataset + torchvision": lambda: _webdataset(bench, manifest, cores),
    }
    starts: dict[str, Start] = {}
    rates: dict[str, list[float]] = {}
    for nth in range(1 + scale.rounds):  # the first round as soon as each is ready
        for name, make in contestants.items():
            if nth and name not in starts:
                continue
            if late := bench.too_late(f"loader: {name}, round {nth + 1}", 15):
                yield late
                continue
            try:
                starts[name] = starts.get(name) or make()
                rates.setdefault(name, []).append(_rate(starts[name], bench))
            except Exception as error:  # also a peer that is not installed
                yield Failure(f"loader: {name}", repr(error))
                starts.pop(name, None)
            if "ours" in rates:
                sizes = f"{scale.check_size[0]} px from shards, batches of {scale.images}"
                medians = {name: median(values) for name, values in rates.items()}
                yield compare(f"crops of {sizes}, {cores} threads or workers", "images/s", medians)


def decoding(bench: Bench) -> Iterator[Result]:
    """Measure crops of encoded images in memory, without and with the JPEG hardware."""
    threads = 1 if bench.scale.dry else 8
    yield from decode(bench.shards, threads, bench.scale.check_size[0], bench.scale.device, bench.scale.images)


def masks_alone(bench: Bench) -> Iterator[Result]:
    """Measure masks, compiled on a GPU."""
    yield from masks(bench.scale.device)


def _rate(start: Start, bench: Bench) -> float:
    """Return images per second, from a fresh start."""
    warm, timed = (1, 2) if bench.scale.dry else (_WARM, _TIMED)
    batches = start()
    for _ in islice(batches, warm):
        pass
    synchronise(bench.scale.device)
    begin = time.perf_counter()
    images = sum(len(batch) for batch in islice(batches, timed))
    synchronise(bench.scale.device)
    return images / (time.perf_counter() - begin)


def _ours(bench: Bench, manifest: Manifest, threads: int) -> Start:
    size, batch = bench.scale.check_size[0], bench.scale.images
    data = Data(
        shards=str(bench.shards),
        image_size=size,
        crop_scale=CROP_SCALE,
        decode_threads=max(1, threads // 2),
        read_threads=max(1, threads // 2),
        lanes=1,
    )
    plan = Plan(manifest.counts, lanes=1, block=len(manifest))
    loader = Loader(manifest, data, batch, bench.scale.device)

    def start() -> Iterator[torch.Tensor]:
        requests = training_requests(
            plan, manifest, data, first_step=0, batch_size=batch, micro_batch=batch, rank=0, world_size=1
        )
        warm, timed = (1, 2) if bench.scale.dry else (_WARM, _TIMED)
        return (batch.inputs for batch in loader.batches(islice(requests, warm + timed)))

    return start


def _dali(bench: Bench, manifest: Manifest, threads: int) -> Start:
    """Read tars in order and crop at random, as DALI's documentation does."""
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import pipeline_def
    from torch.utils.dlpack import from_dlpack

    gpu = bench.scale.device.type == "cuda"
    shards = min(len(manifest.counts), 16)  # it scans all of them before the first batch
    tars = [manifest.shard_location(shard) for shard in range(shards)]
    size = bench.scale.check_size[0]

    @pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=bench.scale.images, num_threads=threads, device_id=0 if gpu else None, exec_dynamic=True
    )
    def graph() -> Any:
        encoded = fn.readers.webdataset(paths=tars, ext=["jpg;jpeg;png;webp"], missing_component_behavior="skip")
        images = fn.decoders.image_random_crop(
            encoded, device="mixed" if gpu else "cpu", output_type=types.RGB, random_area=CROP_SCALE
        )
        images = fn.resize(images, size=(size, size), interp_type=types.INTERP_CUBIC, antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip())

    pipeline = graph()
    pipeline.build()

    def start() -> Iterator[torch.Tensor]:
        while True:
            (images,) = pipeline.run()
            yield from_dlpack(images.as_tensor())

    return start


def _webdataset(bench: Bench, manifest: Manifest, workers: int) -> Start:
    device = bench.scale.device
    host = webdataset_on_tensors(manifest, workers, bench.scale.check_size[0], bench.scale.images)

    def start() -> Iterator[torch.Tensor]:
        for (images,) in host():
            pinned = images.pin_memory() if device.type == "cuda" else images
            yield pinned.to(device, non_blocking=True)

    return start
