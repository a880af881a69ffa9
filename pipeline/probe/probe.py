"""Run one probe from its source to its results: JSON, pictures and curves. `maskfeat probe` calls it."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from model.encoders.encoder import Pool
from pipeline.checkpoints import checkpoint
from pipeline.cluster.world import World
from pipeline.config import Recipe
from pipeline.data.data_sets import DataSets
from pipeline.data.labels import labels_of
from pipeline.files import Writing, output
from pipeline.probe.features import View, check_encoder, compute, load
from pipeline.probe.judge import Judgement, Settings, judge
from pipeline.probe.look import look
from pipeline.probe.pictures import Picture
from pipeline.probe.source import Source, of_run, of_weights, stated_recipe
from pipeline.report.tensorboard import TensorBoard
from pipeline.settings import ConfigError
from shards.manifest import Manifest
from shards.secrets import masked
from shards.terminal import note, say, shown


@dataclass(frozen=True)
class Asked:
    """The arguments of a probe.

    Attributes:
        source: a run.dir, weights, or a timm model.
        overrides: overrides of its recipe.
        step: step of a run's older checkpoint; None: the newest.
        untrained: whether to probe the same architecture and seed without any training.
        layers: blocks, counted from 0, or from -1 for the last.
        pool: mean of the patch tokens, or class token.
        crop: share of the largest centred crop.
        out: folder of results and features; None: see `default_folder`.
    """

    source: str
    overrides: Sequence[str]
    step: int | None
    untrained: bool
    layers: Sequence[int]
    pool: Pool
    crop: float
    out: Path | None


def probe(asked: Asked, settings: Settings, world: World, as_json: bool = False) -> None:
    """Compute features, evaluate them, and write and print the results. All ranks call this together.

    Args:
        asked: the arguments.
        settings: parameters of the probes; the seed is replaced by the recipe's.
        world: the ranks.
        as_json: print the report that is written, as one JSON object, instead of tables.

    Raises:
        ConfigError, WeightsError, CheckpointError, ShardError, DataError: the source, or the data, cannot be used.
    """
    started = time.perf_counter()
    tell = note if as_json else say
    source, name, step = find(asked)
    recipe, encoder = source.recipe, source.encoder
    place = _validation_of(recipe)
    training, validation = DataSets(recipe.data, labelled=True).manifest, Manifest.load(place)
    labels = labels_of(training, validation)
    layers = _from_zero(asked.layers, encoder.depth, recipe.model.name)
    check_encoder(encoder, asked.pool)
    if world.rank == 0:
        for line in source.notes:
            tell(f"note: {line}")

    # Features; those that exist are not recomputed
    out = asked.out or default_folder(asked.source)
    weights = source.identity()
    encoder.network.to(world.device)
    view = View(
        weights,
        recipe.data.image_size,
        asked.crop,
        recipe.engine.precision,
        asked.pool,
        recipe.model.statistics,
        recipe.data.clip,
    )
    places = [compute(out / "features", encoder, layers, view, of, recipe, world) for of in (training, validation)]
    computed = time.perf_counter()

    # Probes
    settings = replace(settings, seed=recipe.run.seed)
    judgements, samples = {}, len(training) + len(validation)
    for layer in layers:
        bank = load(places[0][layer], world.rank, world.size, world.device)
        queries = load(places[1][layer], 0, 1, world.device)
        judgements[layer] = judge(bank, queries, samples, labels, len(training.classes), settings, world)
    if world.rank > 0:
        return
    ended = time.perf_counter()
    if not as_json:
        show(f"{asked.source}, {name}", judgements, "clips" if recipe.data.clip else "images")
    seconds = {"features": computed - started, "probes": ended - computed}
    tell(f"features {seconds['features']:.0f} s, probes {seconds['probes']:.0f} s; see {out}/{name}.json")
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
    with output(out):
        (out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    judged = judgements[layers[-1]]
    pictures, attended = look(source, asked.crop, asked.pool, training, validation, judged, world)
    listed = " ".join(f"{tokens:.3g}" for tokens in attended)
    tell(f"tokens that a query attends to, block by block: {listed}")
    text = json.dumps(report | {"attended_tokens": attended}, indent=1) + "\n"
    if as_json:
        print(text, end="")
    with output(out):
        (out / f"{name}.json").write_text(text)
        keep(out, name, step, judgements, attended, pictures)


def check(asked: Asked) -> None:
    """Check the source and the overrides as far as possible without opening weights.

    Raises:
        ConfigError: the source does not exist, an override is wrong, or there is no validation set.
    """
    recipe = stated_recipe(asked.source, asked.overrides)
    if recipe:
        _validation_of(recipe)


def _from_zero(layers: Sequence[int], depth: int, name: str) -> list[int]:
    if wrong := [layer for layer in layers if not -depth <= layer < depth]:
        raise ConfigError(f"--layer {wrong[0]}: {name} has blocks 0 to {depth - 1}, or -1 to -{depth}")
    return sorted({layer % depth for layer in layers})


def _validation_of(recipe: Recipe) -> str:
    if recipe.data.validation is None:
        raise ConfigError("a probe is judged on labelled samples that it was not trained on: set data.validation")
    return recipe.data.validation


def find(asked: Asked) -> tuple[Source, str, int]:
    """Return the source, its name among the results, and the step at which curves show it."""
    run = Path(asked.source)
    if not (run / "config.yaml").exists():
        source = of_weights(asked.source, asked.untrained, asked.overrides)
        return source, "untrained" if asked.untrained else "weights", 0
    if asked.untrained:
        return of_run(run, None, asked.overrides), "untrained", 0
    found = checkpoint.chosen(run, asked.step)
    return of_run(run, found, asked.overrides), found.folder.name, found.facts.step


def default_folder(source: str) -> Path:
    """Return the folder of the results without --out."""
    run = Path(source)
    return run / "probe" if (run / "config.yaml").exists() else Path("runs") / f"probe-{run.name}"


def described(manifest: Manifest) -> dict[str, Any]:
    """Describe a data set, for the report."""
    return {"shards": masked(manifest.root), "identity": manifest.identity, "samples": len(manifest)}


def show(title: str, judgements: dict[int, Judgement], samples: str) -> None:
    """Print the tables. The rate is chosen on held-out training samples, since the best on validation is biased."""
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
        f"{counts.trained:,} training {samples}, {counts.held_out:,} held out to choose the rate (bold), "
        f"{counts.validated:,} validation {samples}; {counts.bad:,} bad ones skipped"
    )


def keep(
    out: Path,
    name: str,
    step: int,
    judgements: dict[int, Judgement],
    attended: list[float],
    pictures: dict[str, Picture],
) -> None:
    """Write curves over the steps of a run, and pictures, to TensorBoard; the pictures also as files."""
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
