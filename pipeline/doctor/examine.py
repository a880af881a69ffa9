"""Make all measurements of a cluster for one recipe, and interpret them for `maskfeat doctor`."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from pipeline.build import build_model
from pipeline.checkpoints.saver import snapshot_bytes
from pipeline.cluster.findings import Finding
from pipeline.cluster.launchers import place
from pipeline.cluster.preflight import agreement, exchange
from pipeline.cluster.world import World, lost_a_rank
from pipeline.config import Recipe, TrainingRecipe
from pipeline.data.decode.gpu import LIMIT
from pipeline.data.errors import DataError
from pipeline.data.labels import labels_of
from pipeline.data.loader import open_training, open_validation
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
    "fix the storage if it hangs; else look for a rank that ended or never started, and let NCCL_SOCKET_IFNAME and "
    "GLOO_SOCKET_IFNAME name the network interface that joins the nodes"
)


@dataclass(frozen=True)
class Wanted:
    """The standards by which the machines are judged.

    Attributes:
        samples: number of samples that each rank reads and decodes.
        images_per_second: images or clips that training needs per rank; None: ranks are only compared with each other.
        network: GB/s that a node of GPUs can send.
        link: GB/s that a GPU can send within a node.
        deadline: seconds that a check may take.
    """

    samples: int
    images_per_second: float | None
    network: float
    link: float
    deadline: float


def examine(recipe: TrainingRecipe, world: World, wanted: Wanted) -> list[Finding]:
    """Return all findings; all ranks call this together, and get the same.

    Raises:
        ConfigError: rank 0's recipe, or the labels, do not give a valid run.
    """
    deadline = wanted.deadline
    with within(deadline, "reading the manifests"):
        opened, inputs = inputs_of(recipe)
        manifest = next((found for found in opened if isinstance(found, str)), opened[0])  # or why one cannot be opened
    with within(2 * deadline, "comparing with the other ranks"):
        findings = agreement(exchange(recipe, inputs, world))
        recipe = world.from_first(recipe)  # so that different ranks do not hang later
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
    of_both_media = isinstance(manifest, Manifest) and len(manifest.media) > 1
    counted, needed = _counted(recipe.data, of_both_media), _needed(recipe, wanted.images_per_second)
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


def _counted(data: Data, of_both_media: bool = False) -> Counted:
    """Return the units of the rates: for a model of clips, videos that are read and clips made of them.

    Args:
        data: the settings.
        of_both_media: whether images are read besides.
    """
    if of_both_media:
        return Counted("images and videos", "inputs", data.repeats)
    if data.clip is None:
        return Counted(repeats=data.repeats)
    return Counted("videos", "clips", data.repeats, data.clip.frames)


def _needed(recipe: TrainingRecipe, views: float | None) -> float | None:
    """Return the images or clips to make per second for `views`, which count each under every mask."""
    return None if views is None else views / recipe.masks


def _model(recipe: TrainingRecipe, opened: list[Manifest | str]) -> nn.Module:
    """Build the model that the run would train; without readable data, the number of classes is 0."""
    if isinstance(recipe, Recipe):
        return build_model(recipe)
    assert isinstance(recipe, FinetuneRecipe)
    manifests = [found for found in opened if isinstance(found, Manifest)]
    if len(manifests) < 2:
        return build_classifier(recipe, 0)
    training, validation = manifests
    labels_of(training, validation)
    return build_classifier(recipe, len(training.classes))


def inputs_of(recipe: TrainingRecipe) -> tuple[list[Manifest | str], dict[str, str]]:
    """Return training and validation sets, or why one cannot be used, and the identities of all inputs."""
    data = recipe.data
    if data.mode == "stream":
        return [""], {"data.shards": _read(recipe)}

    training = _opened(lambda: open_training(data).manifest)
    opened = {"data.shards" if data.mixture is None else "data.mixture": training}
    of_both_media = isinstance(training, Manifest) and len(training.media) > 1
    for setting in ("validation", "validation_images"):
        if shards := getattr(data, setting):
            images = setting == "validation_images"
            opened[f"data.{setting}"] = _opened(partial(open_validation, shards, data, of_both_media, images))
    return list(opened.values()), {
        name: found if isinstance(found, str) else found.identity for name, found in opened.items()
    }


def _read(recipe: TrainingRecipe) -> str:
    """Name the inputs, without secrets."""
    return "data.mixture" if recipe.data.shards is None else masked(recipe.data.shards)


def _opened(load: Callable[[], Manifest]) -> Manifest | str:
    """Return a manifest, or why its samples cannot be used."""
    try:
        return load()
    except (ShardError, DataError) as error:
        return str(error)


def _data_rates(
    manifest: Manifest | str, recipe: TrainingRecipe, world: World, batches: int
) -> tuple[Rate | str, Rate | str | None]:
    """Return the rates of reading and decoding, or why they cannot be measured."""
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
    """End this process if the block takes longer: hangs are among the problems to find."""

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
