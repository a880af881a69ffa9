"""Judge frozen features by a linear classifier and by nearest neighbours.

    deepspeed scripts/probe.py RUN|WEIGHTS data.shards=TRAIN data.validation=VALIDATION [section.key=value ...]

RUN is a run.dir of scripts/pretrain.py: its newest valid checkpoint, or --step N, or --untrained to compare with.
WEIGHTS is what model.init takes (give model.name and model.options where the file does not tell them), or the name of a
timm model. Both data sets need labels. One process without the launcher works too.

Features are computed once and kept under --out, so that the next probe of the same takes seconds. There, too, are
NAME.json with all numbers, pictures, and curves: tensorboard --logdir RUN shows them beside those of the run.

Examples, each on one line:

    deepspeed scripts/probe.py runs/vit_base_300e data.shards=/data/train data.validation=/data/val --layer -1 -4

    DS_ACCELERATOR=cpu python scripts/probe.py runs/demo data.shards=train data.validation=val --untrained
"""

import argparse
import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from model.weights import WeightsError
from pipeline.checkpoints import checkpoint
from pipeline.checkpoints.checkpoint import CheckpointError
from pipeline.cluster.world import World, join, lost_a_rank
from pipeline.data.errors import DataError
from pipeline.data.labels import labels_of
from pipeline.files import Writing
from pipeline.probe.features import View, compute
from pipeline.probe.judge import Judgement, Settings, judge
from pipeline.probe.look import look
from pipeline.probe.pictures import Picture
from pipeline.probe.source import Source, of_run, of_weights
from pipeline.report.tensorboard import TensorBoard
from pipeline.settings import ConfigError
from pipeline.train.command import leave
from shards.files import ShardError
from shards.manifest import Manifest
from shards.secrets import masked
from shards.terminal import Parser, note, say, shown

EXPECTED = (ConfigError, WeightsError, CheckpointError, ShardError, DataError, OSError)  # one line says it all
RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0]


def main() -> int:
    """Exit status 0: judged; 1: it cannot be; 2: it was not understood."""
    parser = Parser(__doc__)
    parser.add_argument("source", metavar="RUN|WEIGHTS", help="a run.dir, weights, or a timm model")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="settings that replace the recipe's"
    )
    parser.add_argument("--step", type=int, help="of a run's older checkpoint")
    parser.add_argument("--untrained", action="store_true", help="the same architecture and seed without any training")
    parser.add_argument(
        "--layer", type=int, nargs="+", default=[-1], metavar="N", help="blocks, from 0, or -1: the last"
    )
    parser.add_argument("--pool", choices=("mean", "class"), default="mean", help="patch tokens' mean, or class token")
    parser.add_argument(
        "--crop", type=float, default=224 / 256, help="of the short side, whose centre is seen (%(default)s)"
    )
    parser.add_argument("--k", type=int, nargs="+", default=[20], metavar="K", help="neighbours that vote (20)")
    parser.add_argument("--temperature", type=float, default=0.07, help="of the votes (%(default)s)")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, metavar="LR", help="trained side by side")
    parser.add_argument("--epochs", type=int, default=100, help="of the linear classifier (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=1024, help="of the linear classifier (%(default)s)")
    parser.add_argument(
        "--held-out", type=float, default=0.1, metavar="SHARE", help="of training, to choose the rate by (%(default)s)"
    )
    parser.add_argument("--out", type=Path, help="folder of results and features (RUN/probe, or runs/probe-WEIGHTS)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    arguments = parser.parse_intermixed_args()
    if not (0 < arguments.crop <= 1 and 0 < arguments.held_out < 1):
        parser.error("--crop lies in (0, 1], --held-out in (0, 1)")
    if not all(0 < value < math.inf for value in (arguments.temperature, *arguments.rates)):
        parser.error("--temperature and --rates are numbers above 0")
    if min(*arguments.k, arguments.epochs, arguments.batch_size) < 1:
        parser.error("--k, --epochs and --batch-size are at least 1")
    try:
        world = join()
        probe(arguments, world)
    except EXPECTED as error:
        if os.environ.get("RANK", "0") == "0" or isinstance(error, DataError):
            note(f"error: {error}")
        return 2 if isinstance(error, ConfigError) else 1
    except RuntimeError as error:
        if not lost_a_rank(error):
            raise
        note(f"error: lost another rank, whose own error tells why ({str(error).splitlines()[0]})")
        return 1
    return 0


def probe(arguments: argparse.Namespace, world: World) -> None:
    """Everything, on all ranks together."""
    started = time.perf_counter()
    source, name, step = find(arguments)
    recipe, encoder = source.recipe, source.encoder
    if recipe.data.validation is None:
        raise ConfigError("a probe is judged on labelled images that it was not trained on: set data.validation")
    training, validation = Manifest.load(recipe.data.shards), Manifest.load(recipe.data.validation)
    labels = labels_of(training, validation)
    depth = len(encoder.blocks)
    if wrong := [layer for layer in arguments.layer if not -depth <= layer < depth]:
        raise ConfigError(f"--layer {wrong[0]}: {recipe.model.name} has blocks 0 to {depth - 1}, or -1 to -{depth}")
    layers = sorted({layer % depth for layer in arguments.layer})
    if world.rank == 0:
        for line in source.notes:
            say(f"note: {line}")

    # Features, of which those already there are not computed again
    out = arguments.out or default_folder(arguments.source)
    weights = source.identity()
    encoder.to(world.device)
    view = View(weights, recipe.data.image_size, arguments.crop, recipe.engine.precision, arguments.pool)
    places = [compute(out / "features", encoder, layers, view, of, recipe, world) for of in (training, validation)]
    computed = time.perf_counter()

    # Probes
    settings = Settings(
        arguments.k,
        arguments.temperature,
        sorted(set(arguments.rates)),
        arguments.epochs,
        arguments.batch_size,
        arguments.held_out,
        recipe.run.seed,
    )
    judgements = {
        layer: judge(places[0][layer], places[1][layer], labels, len(training.classes), settings, world)
        for layer in layers
    }
    if world.rank > 0:
        return
    ended = time.perf_counter()
    show(f"{arguments.source}, {name}", judgements)
    seconds = {"features": computed - started, "probes": ended - computed}
    say(f"features {seconds['features']:.0f} s, probes {seconds['probes']:.0f} s; see {out}/{name}.json")
    report = {
        "name": name,
        "view": asdict(view),
        "settings": asdict(settings),
        "training": described(training),
        "validation": described(validation),
        "layers": {str(layer): judgement.report() for layer, judgement in judgements.items()},
        "seconds": seconds,
        "ranks": world.size,
        "device": str(world.device),
    }
    (out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    judged = judgements[layers[-1]]
    pictures, attended = look(source, arguments.crop, arguments.pool, training, validation, judged, world)
    listed = " ".join(f"{tokens:.3g}" for tokens in attended)
    say(f"tokens that a query attends to, block by block: {listed}")
    (out / f"{name}.json").write_text(json.dumps(report | {"attended_tokens": attended}, indent=1) + "\n")
    keep(out, name, step, judgements, attended, pictures)


def find(arguments: argparse.Namespace) -> tuple[Source, str, int]:
    """What is probed, its name among the results, and the step at which curves show it."""
    run = Path(arguments.source)
    if not (run / "config.yaml").exists():
        source = of_weights(arguments.source, arguments.untrained, arguments.overrides)
        return source, "untrained" if arguments.untrained else "weights", 0
    if arguments.untrained:
        return of_run(run, None, arguments.overrides), "untrained", 0
    found = checkpoint.chosen(run, arguments.step)
    return of_run(run, found, arguments.overrides), found.folder.name, found.facts.step


def default_folder(source: str) -> Path:
    """Where results go unless --out tells."""
    run = Path(source)
    return run / "probe" if (run / "config.yaml").exists() else Path("runs") / f"probe-{run.name}"


def described(manifest: Manifest) -> dict[str, Any]:
    """A data set, for the report."""
    return {"shards": masked(manifest.root), "identity": manifest.identity, "samples": len(manifest)}


def show(title: str, judgements: dict[int, Judgement]) -> None:
    """The tables. The rate is chosen on held-out training images: the best on validation would flatter."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    for layer, judgement in judgements.items():
        heading = shown(f"{title}, block {layer}")
        table = Table("probe", "", "held out", "top-1", "top-5", box=SIMPLE_HEAD, title=heading)
        for k, (top1, top5) in judgement.neighbours.items():
            table.add_row("k-NN", f"k {k}", "", f"{top1:.1%}", f"{top5:.1%}")
        for rate, (own, top1, top5) in judgement.linear.items():
            style = "bold" if rate == judgement.chosen else None
            table.add_row("linear", f"rate {rate:g}", f"{own:.1%}", f"{top1:.1%}", f"{top5:.1%}", style=style)
        console.print(table)
    counts = next(iter(judgements.values()))
    say(
        f"{counts.trained:,} training images, {counts.held_out:,} held out to choose the rate (bold), "
        f"{counts.validated:,} validation images; {counts.bad:,} bad ones left out"
    )


def keep(
    out: Path,
    name: str,
    step: int,
    judgements: dict[int, Judgement],
    attended: list[float],
    pictures: dict[str, Picture],
) -> None:
    """Curves over the steps of a run, and pictures, in TensorBoard; the pictures as files, too."""
    board = TensorBoard(out / "tensorboard", Writing())
    scalars = {f"probe/block {block}/attended tokens": tokens for block, tokens in enumerate(attended)}
    for layer, judgement in judgements.items():
        accuracies = {f"{k}-NN": accuracy for k, accuracy in judgement.neighbours.items()}
        accuracies["linear"] = judgement.linear[judgement.chosen][1:]
        for classifier, (top1, top5) in accuracies.items():
            scalars[f"probe/block {layer}/{classifier} top-1"] = top1
            scalars[f"probe/block {layer}/{classifier} top-5"] = top5
    board.scalars(step, scalars)
    for kind, picture in pictures.items():
        Image.fromarray(picture).save(out / f"{name}-{kind}.png")
        board.image(step, f"probe/{kind}", picture)
    board.close()


if __name__ == "__main__":
    leave(main)
