"""Find what is wrong with a cluster before a run does.

    deepspeed [launcher options] scripts/doctor.py RECIPE [section.key=value ...]

Start it as the run is to be started: same launcher, same recipe, same overrides, with --finetune for a recipe of
scripts/finetune.py; one process alone works too. It takes about a minute, makes run.dir but leaves nothing there, and
prints what it found with remedies:

- versions, recipe, inputs, run.dir: the same on all ranks? (pretrain.py asks that much by itself at every start)
- storage, decoding: random samples are read and decoded as in training, and timed
- decoding on GPUs: does it crash or differ from the CPU's in a process of its own, and is libnvjpeg there?
- all-reduce of a buffer of the gradient's size: the right sum, and fast enough?
- clocks, cores, open files, memory, /dev/shm, room for checkpoints and in data.cache
- the GPUs' memory errors and throttling

Exit status 0: start the run, perhaps mend the warnings; 1: mend the problems first; 2: it was not understood.

Examples, each on one line:

    deepspeed --hostfile hosts scripts/doctor.py vit_base_300e data.shards=/data/train run.dir=/runs/base --network 50

    deepspeed scripts/doctor.py vit_base_100e --finetune data.shards=/data/train data.validation=/data/val

    DS_ACCELERATOR=cpu deepspeed --num_gpus 2 scripts/doctor.py demo data.shards=shards/train --json findings.json
"""

import argparse
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from pipeline.build import build_model
from pipeline.checkpoints.checkpoint import PARTS
from pipeline.checkpoints.saver import snapshot_bytes
from pipeline.cluster.findings import Finding, Verdict
from pipeline.cluster.launchers import place
from pipeline.cluster.preflight import agreement, exchange
from pipeline.cluster.world import World, join, lost_a_rank
from pipeline.config import Recipe, TrainingRecipe, load
from pipeline.data.decode.gpu import LIMIT
from pipeline.data.errors import DataError
from pipeline.data.labels import labels_of
from pipeline.doctor import diagnosis, measure
from pipeline.doctor.diagnosis import Vitals
from pipeline.doctor.measure import BATCH, Rate
from pipeline.doctor.network import all_reduce, clocks
from pipeline.finetune.build import build_classifier
from pipeline.finetune.config import FinetuneRecipe
from pipeline.recipes import read_settings
from pipeline.record import kind_of
from pipeline.settings import ConfigError
from pipeline.train.engine import DTYPES
from shards.files import ShardError
from shards.manifest import Manifest
from shards.secrets import masked
from shards.terminal import Parser, note, note_error, prepare, shown

COLOURS = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.PROBLEM: "red"}
SHOWN = 8  # places a check in the table; --json has all
STUCK = (
    "mend the storage if that hangs; else look for a rank that ended or never started, and let NCCL_SOCKET_IFNAME and "
    "GLOO_SOCKET_IFNAME name the network interface that joins the nodes"
)


def main() -> int:
    """Exit status 0: no problems; 1: problems; 2: it was not understood."""
    parser = Parser(__doc__)
    parser.add_argument("recipe", help="name in scripts/recipes or, with --finetune, its folder finetune; or path")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="settings that replace the recipe's"
    )
    parser.add_argument(
        "--finetune", action="store_true", help="RECIPE is the name of one of fine-tuning; a file says so itself"
    )
    parser.add_argument("--samples", type=int, default=512, metavar="N", help="read by each rank (%(default)s)")
    parser.add_argument("--images-per-second", type=float, metavar="R", help="of one rank, that training needs")
    parser.add_argument("--network", type=float, default=400, help="GB/s a node of GPUs sends (%(default)s)")
    parser.add_argument("--link", type=float, default=450, help="GB/s a GPU sends within a node (%(default)s)")
    parser.add_argument(
        "--deadline", type=float, default=120, metavar="S", help="seconds a check may take (%(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the findings")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    arguments = parser.parse_intermixed_args()
    try:
        kind = FinetuneRecipe if arguments.finetune or _says_finetuning(arguments.recipe) else Recipe
        recipe = load(kind, arguments.recipe, arguments.overrides)
        with _within(arguments.deadline, "joining the other ranks"):
            world = join()
        findings = examine(recipe, world, arguments)
    except ConfigError as error:
        if place(os.environ)[1] == 0:
            note(f"error: {error}")
        return 2
    if world.rank == 0:
        show(findings)
        if arguments.json:
            told = [asdict(finding) | {"verdict": finding.verdict.name.lower()} for finding in findings]
            try:
                arguments.json.write_text(json.dumps(told, indent=1) + "\n")
            except OSError as error:
                note(f"error: --json {arguments.json}: {error.strerror}: name a file that can be written")
                return 2
    return int(any(finding.verdict is Verdict.PROBLEM for finding in findings))


def _says_finetuning(recipe: str) -> bool:
    """Whether a recipe is a file that describes a run of fine-tuning."""
    try:
        return recipe.endswith((".yaml", ".yml")) and kind_of(read_settings(Path(recipe))) == "finetune"
    except (OSError, ValueError):
        return False  # `load` reports what is wrong with it


def examine(recipe: TrainingRecipe, world: World, arguments: argparse.Namespace) -> list[Finding]:
    """All findings; all ranks do this together, and find the same.

    Raises:
        ConfigError: no run can be made of rank 0's recipe, or of the labels.
    """
    deadline = arguments.deadline
    with _within(deadline, "reading the manifests"):
        opened, inputs = _inputs(recipe)
        manifest = next((found for found in opened if isinstance(found, str)), opened[0])  # or why one cannot be opened
    with _within(2 * deadline, "comparing with the other ranks"):
        findings = agreement(exchange(recipe, inputs, world))
        recipe = world.from_first(recipe)  # so that ranks that differ do not hang in what follows
    recipe.micro_batch(world.size)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in _model(recipe, opened).parameters())

    with _within(4 * LIMIT + deadline, "testing how the GPU decodes"):
        decoders = world.gather(measure.gpu_decoding(recipe.data, world))
    batches = max(2, -(-arguments.samples // BATCH))
    with _within(deadline, f"reading and decoding {batches * BATCH} samples of {masked(recipe.data.shards)}"):
        read, decoded = _data_rates(manifest, recipe, world, batches)
    node = world.rank - world.local_rank
    mine = Vitals(socket.gethostname(), node, read, decoded, measure.machine(recipe))
    with _within(2 * deadline, "hearing of the other ranks"):
        vitals = world.gather(mine)
    with _within(deadline, "comparing clocks"):
        times = clocks(world, deadline)
    with _within(deadline, "all-reduce"):
        reduced = all_reduce(world, parameters * DTYPES[recipe.engine.precision].itemsize)
        gpus = world.gather(measure.gpu(world))  # while they are warm

    one_node = len({rank.node for rank in vitals}) == 1
    expected = (arguments.link if one_node else arguments.network) * 1e9 if world.gpu is not None else None
    averaged = isinstance(recipe, FinetuneRecipe) and recipe.optim.average is not None
    states = len(PARTS) + averaged
    snapshot = snapshot_bytes(states * parameters // world.size, pinned=world.gpu is not None)
    kept = len(list((recipe.run.dir / "checkpoints").glob("step-*")))
    findings += [
        diagnosis.storage(vitals, recipe.data.bad_share, arguments.images_per_second),
        diagnosis.decoding(vitals, recipe.data.bad_share, arguments.images_per_second),
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
    """Training and validation set, or why one cannot be opened, and the identities of all that is read."""
    if recipe.data.mode == "stream":
        return [""], {"data.shards": masked(recipe.data.shards)}
    opened = {"data.shards": _opened(recipe.data.shards)}
    if recipe.data.validation:
        opened["data.validation"] = _opened(recipe.data.validation)
    return list(opened.values()), {
        name: found if isinstance(found, str) else found.identity for name, found in opened.items()
    }


def _opened(root: str) -> Manifest | str:
    try:
        return Manifest.load(root)
    except ShardError as error:
        return str(error)


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


def show(findings: list[Finding]) -> None:
    """A table for a person."""
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 160  # launchers read through pipes
    table = Table("check", "verdict", "found", "remedy", box=SIMPLE_HEAD)
    for finding in findings:
        places = [f"{place}: {result}" for place, result in finding.results.items()]
        if len(places) > SHOWN:
            places[SHOWN:] = [f"and {len(places) - SHOWN} more (--json)"]
        verdict = Text(finding.verdict.name.lower(), COLOURS[finding.verdict])
        table.add_row(finding.check, verdict, "\n".join(map(shown, places)), shown(finding.remedy))
    console.print(table)


@contextmanager
def _within(seconds: float, what: str) -> Iterator[None]:
    """End this process if what happens inside takes longer: a hang is what a doctor is called for."""

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


if __name__ == "__main__":
    prepare()
    try:
        status = main()
    except Exception as error:
        note_error(error)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a thread that waits for storage that hangs must not keep this alive
