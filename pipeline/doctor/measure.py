"""Measure one rank: storage, decoding, its share of the node, its GPU."""

import importlib
import math
import os
import re
import resource
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.cluster.world import World
from pipeline.config import TrainingRecipe
from pipeline.data.augment import sample_keys
from pipeline.data.batch import Batch, Batcher
from pipeline.data.decode.decoder import chosen
from pipeline.data.decode.gpu import Choice
from pipeline.data.decode.graphs import Decoding
from pipeline.data.errors import DataError
from pipeline.data.reader import Reader, Sample
from pipeline.data.request import Request, Shapes, training_request
from pipeline.data.settings import Data
from pipeline.data.stream import StreamData
from pipeline.train.setup import part_of
from shards.manifest import Manifest

BATCH = 64  # images decoded at once
# Bits of NVML's clock event reasons for unwanted slowdowns
_SLOWDOWNS = {0x08: "hardware", 0x20: "heat (driver)", 0x40: "heat", 0x80: "power brake"}


@dataclass(frozen=True)
class Counted:
    """The units of rates.

    Attributes:
        samples: the samples that are read, "images" or "videos".
        inputs: the inputs made of them, "images" or "clips".
        repeats: inputs per sample.
        frames: frames per clip; None: the inputs are images.
    """

    samples: str = "images"
    inputs: str = "images"
    repeats: int = 1
    frames: int | None = None


@dataclass(frozen=True)
class Rate:
    """The rate of one rank in `Counted` and bytes per second, its bad and tried samples, and why the first is bad."""

    images: float
    bytes: float
    tried: int
    bad: int = 0
    why: str = ""


@dataclass(frozen=True)
class Machine:
    """The part of its node that a rank may use; sizes in bytes.

    Attributes:
        cores: numbers of the usable cores.
        quota: the container's limit, in cores.
        open_files: limit of open files.
        memory: available on the node, or in the container where that has less.
        shared_memory: free in /dev/shm.
        run_room: free space at `run.dir`; 0 if it cannot be written.
        cache_room: free space at `data.cache`, including the shards in it; None: there is no cache.
    """

    cores: frozenset[int]
    quota: float
    open_files: float
    memory: int
    shared_memory: int
    run_room: int
    cache_room: int | None


@dataclass(frozen=True)
class Gpu:
    """The state of a GPU; None for facts that it, or NVML, does not provide.

    Attributes:
        name: name of the model.
        taken: bytes of its memory that are not this process's tensors.
        nvml: why NVML does not answer; empty: it does.
        uncorrected: memory errors that ECC could not correct, since the driver was loaded.
        slowdowns: reasons for a slower clock.
        temperature, limit: current temperature, and that at which the GPU slows down, in degrees Celsius.
    """

    name: str
    taken: int
    nvml: str
    uncorrected: int | None = None
    slowdowns: tuple[str, ...] = ()
    temperature: int | None = None
    limit: int | None = None


def storage(manifest: Manifest, data: Data, rank: int, batches: int) -> tuple[list[tuple[Request, list[Sample]]], Rate]:
    """Read batches of random samples, different ones on each rank, bypassing our caches.

    Raises:
        DataError: the storage is unreachable.
    """
    reader = Reader(manifest, data.read_threads, data.requests, data.deadline)
    requests, kinds = [], manifest.samples_by_medium()
    for batch, draws in enumerate(np.random.default_rng(rank).integers(len(manifest), size=(batches, BATCH))):
        of_one = kinds[batch % len(kinds)]
        ids = of_one[draws % len(of_one)]
        keys = sample_keys(rank, np.zeros_like(ids), ids)
        requests.append(training_request(0, ids, keys, Shapes.of(manifest, ids.repeat(data.repeats)), data))
    begin = time.perf_counter()
    reading = [reader.submit(request.ids) for request in requests]
    read = [(request, samples.result()) for request, samples in zip(requests, reading, strict=True)]
    seconds = time.perf_counter() - begin
    samples = [sample for _, batch in read for sample in batch]
    sizes = [len(sample) for sample in samples if not isinstance(sample, str)]
    bad = [sample for sample in samples if isinstance(sample, str)]
    return read, Rate(len(sizes) / seconds, sum(sizes) / seconds, len(samples), len(bad), (bad or [""])[0])


def decoding(read: list[tuple[Request, list[Sample]]], manifest: Manifest, data: Data, device: torch.device) -> Rate:
    """Decode and crop the samples that were read. Raises DataError for too many bad samples in a row."""
    remedy = f"run `maskfeat-shards verify {manifest.root}` and restore what it names"
    return _rate(
        Batcher(data, BATCH * data.repeats, device, remedy, data.repeats, manifest.media, manifest.video).batches(read),
        device,
    )


def gpu_decoding(data: Data, world: World) -> Choice | str | None:
    """Return how this rank's GPU decodes, tested unless that is cached, or why it cannot; None on a CPU.

    Videos need no choice: `decoding` finds out whether they can be decoded.
    """
    if world.gpu is None:
        return None
    if data.clip is not None:
        return Choice(Decoding(), "videos, by NVDEC", final=False)
    try:
        return chosen(world.device, data.hw_decoder_load)
    except DataError as error:
        return str(error)


def streaming(recipe: TrainingRecipe, world: World, batches: int) -> Rate:
    """Read and decode with `data.mode=stream`. Raises DataError where that gives nothing."""
    data = StreamData(recipe.data, replace(part_of(recipe, world), micro_batch=BATCH))
    return _rate(data.batches(0, batches), world.device)


def _rate(batches: Iterator[Batch], device: torch.device) -> Rate:
    """Return the rate over all but the first batch, for which queues and buffers are filled."""
    bad = next(batches).bad
    begin, images, tried = time.perf_counter(), 0, BATCH
    for batch in batches:
        images += len(batch.inputs)
        tried += len(batch.request.ids)
        bad += batch.bad
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - begin
    return Rate(images / seconds, 0, tried, len(bad), bad[0].reason if bad else "")


def machine(recipe: TrainingRecipe) -> Machine:
    """Return the part of its node that this rank may use."""
    shm, (files, _) = Path("/dev/shm"), resource.getrlimit(resource.RLIMIT_NOFILE)
    return Machine(
        frozenset(os.sched_getaffinity(0)),
        _cpu_quota(Path("/sys/fs/cgroup/cpu.max")),
        math.inf if files == resource.RLIM_INFINITY else files,
        _memory(Path("/proc/meminfo"), Path("/sys/fs/cgroup")),
        shutil.disk_usage(shm).free if shm.is_dir() else 0,
        _room(recipe.run.dir),
        _room(recipe.data.cache, "*/*.tar") if recipe.data.cache else None,
    )


def _cpu_quota(file: Path) -> float:
    """Parse the limit of cgroup v2, "150000 100000" or "max 100000": microseconds per period."""
    quota, period = file.read_text().split() if file.exists() else ("max", "0")
    return math.inf if quota == "max" else int(quota) / int(period)


def _memory(meminfo: Path, cgroup: Path) -> int:
    """Return the available bytes: "MemAvailable:  16384 kB", and the rest of cgroup v2's limit."""
    (kilobytes,) = re.findall(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    most = limit.read_text().strip() if limit.exists() else "max"
    available = int(kilobytes) * 1024
    return available if most == "max" else min(available, int(most) - int(used.read_text()))


def _room(folder: Path, ours: str = "") -> int:
    """Return the free bytes where a folder is, or would be made, including its files of the pattern `ours`."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK):
        return 0
    return shutil.disk_usage(there).free + sum(file.stat().st_size for file in folder.glob(ours or "no such"))


def gpu(world: World) -> Gpu | None:
    """Return the state of this rank's GPU, None on a CPU."""
    if world.gpu is None:
        return None
    properties = torch.cuda.get_device_properties(world.gpu)
    free, total = torch.cuda.mem_get_info(world.gpu)
    taken = total - free - torch.cuda.memory_reserved(world.gpu)
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return Gpu(properties.name, taken, "nvidia-ml-py is not installed")
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")
    except nvml.NVMLError as error:
        return Gpu(properties.name, taken, str(error))

    def ask(question: str, *of: int) -> int | None:
        try:
            return int(getattr(nvml, question)(handle, *of))
        except nvml.NVMLError:  # not every GPU or driver provides everything
            return None

    slowed = ask("nvmlDeviceGetCurrentClocksEventReasons") or 0
    return Gpu(
        properties.name,
        taken,
        "",
        ask("nvmlDeviceGetTotalEccErrors", nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC),
        tuple(reason for bit, reason in _SLOWDOWNS.items() if slowed & bit),
        ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        ask("nvmlDeviceGetTemperatureThreshold", nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
    )
