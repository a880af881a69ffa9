"""All measurements of a cluster for one recipe, and what they mean: what `scripts/doctor.py` prints."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.build import build_model
from pipeline.checkpoints.saver import snapshot_bytes
from pipeline.cluster.findings import Finding
from pipeline.cluster.launchers import place
from pipeline.cluster.preflight import agreement, exchange
from pipeline.cluster.world import World, lost_a_rank
from pipeline.config import Recipe, TrainingRecipe
from pipeline.data.data_sets import DataSets
from pipeline.data.decode.gpu import LIMIT
from pipeline.data.errors import DataError
from pipeline.data.labels import labels_of
from pipeline.data.loader import check_kind
from pipeline.data.settings import Data
from pipeline.doctor import diagnosis, measure
from pipeline.doctor.diagnosis import Vitals
from pipeline.doctor.measure import BATCH, Counted, Rate
from pipeline.doctor.network import all_reduce, clocks
from pipeline.finetune.build import build_classifier
from pipeline.finetune.config import FinetuneRecipe
from pipeline.optimizers import OPTIMIZERS
from pipeline.train.engine import DTYPES
from shards.files import ShardError
from shards.manifest import Manifest
from shards.secrets import masked
from shards.terminal import note

STUCK = (
    "mend the storage if that hangs; else look for a rank that ended or never started, and let NCCL_SOCKET_IFNAME and "
    "GLOO_SOCKET_IFNAME name the network interface that joins the nodes"
)


@dataclass(frozen=True)
class Wanted:
    """What the machines are judged by.

    Attributes:
        samples: that each rank reads and decodes.
        images_per_second: images or clips of one rank that training needs; None: ranks are compared with others only.
        network: GB/s that a node of GPUs sends.
        link: GB/s that a GPU sends within a node.
        deadline: seconds that a check may take.
    """

    samples: int
    images_per_second: float | None
    network: float
    link: float
    deadline: float


def examine(recipe: TrainingRecipe, world: World, wanted: Wanted) -> list[Finding]:
    """All findings; all ranks do this together, and find the same.

    Raises:
        ConfigError: no run can be made of rank 0's recipe, or of the labels.
    """
    deadline = wanted.deadline
    with within(deadline, "reading the manifests"):
        opened, inputs = _inputs(recipe)
        manifest = next((found for found in opened if isinstance(found, str)), opened[0])  # or why one cannot be opened
    with within(2 * deadline, "comparing with the other ranks"):
        findings = agreement(exchange(recipe, inputs, world))
        recipe = world.from_first(recipe)  # so that ranks that differ do not hang in what follows
    recipe.micro_batch(world.size)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in _model(recipe, opened).parameters())

    with within(4 * LIMIT + deadline, "testing how the GPU decodes"):
        decoders = world.gather(measure.gpu_decoding(recipe.data, world))
    batches = max(2, -(-wanted.samples // BATCH))
    with within(deadline, f"reading and decoding {batches * BATCH} samples of {_read(recipe)}"):
        read, decoded = _data_rates(manifest, recipe, world, batches)
    node = world.rank - world.local_rank
    mine = Vitals(socket.gethostname(), node, read, decoded, measure.machine(recipe))
    with within(2 * deadline, "hearing of the other ranks"):
        vitals = world.gather(mine)
    with within(deadline, "comparing clocks"):
        times = clocks(world, deadline)
    with within(deadline, "all-reduce"):
        reduced = all_reduce(world, parameters * DTYPES[recipe.engine.precision].itemsize)
        gpus = world.gather(measure.gpu(world))  # while they are warm

    one_node = len({rank.node for rank in vitals}) == 1
    expected = (wanted.link if one_node else wanted.network) * 1e9 if world.gpu is not None else None
    averaged = isinstance(recipe, FinetuneRecipe) and recipe.optim.average is not None
    states = 1 + len(OPTIMIZERS[recipe.optim.name].states) + averaged
    snapshot = snapshot_bytes(states * parameters // world.size, pinned=world.gpu is not None)
    counted, needed = _counted(recipe.data), _needed(recipe, wanted.images_per_second)
    kept = len(list((recipe.run.dir / "checkpoints").glob("step-*")))
    findings += [
        diagnosis.storage(vitals, recipe.data.bad_share, needed, counted),
        diagnosis.decoding(vitals, recipe.data.bad_share, needed, counted),
        diagnosis.gpu_decoding(vitals, decoders),
        diagnosis.network(vitals, reduced, expected),
        diagnosis.clocks(vitals, times),
        diagnosis.gpus(vitals, gpus),
        diagnosis.cores(vitals, recipe.data.decode_threads),
        diagnosis.open_files(vitals, recipe.data.requests),
        diagnosis.memory(vitals, snapshot + 2 * 4 * parameters),  # at the start there are two copies of the weights
        diagnosis.shared_memory(vitals, gpus),
        diagnosis.room(vitals, 4 * states * parameters, max(1, recipe.run.keep + 1 - kept)),
    ]
    if recipe.data.cache:
        findings.append(diagnosis.cache(vitals, recipe.data.cache_size))
    return findings


def _counted(data: Data) -> Counted:
    """Return what rates count: for a model of clips, videos that are read and clips that are made of them."""
    if data.clip is None:
        return Counted(repeats=data.repeats)
    return Counted("videos", "clips", data.repeats, data.clip.frames)


def _needed(recipe: TrainingRecipe, views: float | None) -> float | None:
    """Return the images or clips a second that have to be made for so many views, which are these under all masks."""
    return None if views is None else views / recipe.masks


def _model(recipe: TrainingRecipe, opened: list[Manifest | str]) -> nn.Module:
    """What the run would train; classes that cannot be counted, because the data cannot be opened, are none."""
    if isinstance(recipe, Recipe):
        return build_model(recipe)
    assert isinstance(recipe, FinetuneRecipe)
    manifests = [found for found in opened if isinstance(found, Manifest)]
    if len(manifests) < 2:
        return build_classifier(recipe, 0)
    labels_of(*manifests)
    return build_classifier(recipe, len(manifests[0].classes))


def _inputs(recipe: TrainingRecipe) -> tuple[list[Manifest | str], dict[str, str]]:
    """Training and validation set, or why one cannot be used, and the identities of all that is read."""
    if recipe.data.mode == "stream":
        return [""], {"data.shards": _read(recipe)}
    training = "data.shards" if recipe.data.mixture is None else "data.mixture"
    opened = {training: _opened(lambda: DataSets(recipe.data).manifest, recipe.data)}
    if validation := recipe.data.validation:
        opened["data.validation"] = _opened(lambda: Manifest.load(validation), recipe.data)
    return list(opened.values()), {
        name: found if isinstance(found, str) else found.identity for name, found in opened.items()
    }


def _read(recipe: TrainingRecipe) -> str:
    """Name what is read, without secrets."""
    return "data.mixture" if recipe.data.shards is None else masked(recipe.data.shards)


def _opened(load: Callable[[], Manifest], data: Data) -> Manifest | str:
    try:
        manifest = load()
        check_kind(manifest, data)
    except (ShardError, DataError) as error:
        return str(error)
    return manifest


def _data_rates(
    manifest: Manifest | str, recipe: TrainingRecipe, world: World, batches: int
) -> tuple[Rate | str, Rate | str | None]:
    """How fast samples can be read, and decoded, or why they cannot."""
    try:
        if recipe.data.mode == "stream":
            return measure.streaming(recipe, world, batches), None
        if isinstance(manifest, str):
            return manifest, None
        samples, read = measure.storage(manifest, recipe.data, world.rank, batches)
    except DataError as error:
        return str(error), None
    try:
        return read, measure.decoding(samples, manifest, recipe.data, world.device)
    except DataError as error:
        return read, str(error)


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """End this process if what happens inside takes longer: hangs are among what is looked for."""

    def give_up(why: str) -> None:
        rank = f"rank {place(os.environ)[0]} on {socket.gethostname()}"
        note(f"error: {rank}: {what} {why}: {STUCK}")
        os._exit(1)

    timer = threading.Timer(seconds, give_up, [f"took more than {seconds:g} s"])
    timer.daemon = True
    timer.start()
    try:
        yield
    except RuntimeError as error:
        if not lost_a_rank(error):
            raise
        give_up(f"failed ({str(error).splitlines()[0]})")
    finally:
        timer.cancel()
