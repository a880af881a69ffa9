"""Print the progress of a run, its results, and where its pictures and curves are.

    maskfeat report RUN

Example:

    maskfeat report runs/vit_base_300e
"""

import json
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.card import number
from pipeline.files import entries
from pipeline.pretrain.baselines import IMAGES, file_of, read_baselines
from pipeline.report.charts import PROBES
from pipeline.report.result import ACCURACIES, BASELINES
from shards.terminal import Parser, note, prepare, say


def main() -> int:
    """Return 0, or 1 when RUN is not a run."""
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, help="a run.dir of maskfeat pretrain or finetune")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    prepare()
    arguments = parser.parse_args()
    run: Path = arguments.run
    try:
        logged = list(entries(run / "metrics.jsonl"))
        last = logged[-1]
    except (OSError, IndexError):
        note(f"error: {run} is not a run that has logged a step; correct the path, or wait for its first log line")
        return 1

    if arguments.json:
        print(json.dumps(_figures(run, logged), indent=1))
        return 0
    say(f"run            {run}: step {last['step']}, training loss {number(last.get('loss'), '.4f')}")
    validated = [line for line in logged if "val_loss" in line]
    if validated and (baselines := read_baselines(run)):
        _tell_losses("validation loss", validated[-1]["step"], validated[-1]["val_loss"], baselines)
        of_images = validated[-1].get(f"val_{IMAGES}_loss")
        if of_images is not None and (baselines := read_baselines(run, file_of(IMAGES))):
            _tell_losses("validation loss of images", validated[-1]["step"], of_images, baselines)
    elif validated:
        measured = validated[-1]
        loss = number(measured["val_loss"], ".4f")
        say(f"validation     step {measured['step']}: loss {loss}{_scores(measured, 'val_')}")
    if probed := [line for line in logged if "probe_linear" in line]:
        measured = probed[-1]
        told = f"{number(measured.get('attended_tokens'), '.3g')} tokens attended to"
        say(f"probes         step {measured['step']}: {told}{_scores(measured, 'probe_')}")
    pictures = sorted((run / "pictures").glob("*.png"))
    steps = [picture.stem.split("-")[1] for picture in pictures]
    for step, picture in zip(steps, pictures, strict=True):
        if step == steps[-1]:  # a mixture of images and videos has one of each
            say(f"picture        {picture}")
    if animations := sorted((run / "pictures").glob("*.gif")):
        say(f"animation      {animations[-1]}")
    say(f"curves         tensorboard --logdir {shlex.quote(str(run))}")
    return 0


def _scores(measured: dict[str, Any], prefix: str) -> str:
    """Return the accuracies of a logged step whose names in metrics.jsonl begin with `prefix`, each after a comma."""
    names = [metric for metric in ACCURACIES if metric.startswith(prefix) and metric in measured]
    return "".join(f", {ACCURACIES[metric]} {number(measured[metric], '.1%')}" for metric in names)


def _figures(run: Path, logged: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the last numbers of each kind, with their step, and the losses of constant predictors.

    None for what the run lacks.
    """

    def last(kind: str, metric: str) -> dict[str, Any] | None:
        line = next((line for line in reversed(logged) if metric in line), None)
        return line and {name: value for name, value in line.items() if name == "step" or _kind(name) == kind}

    return {
        "run": str(run),
        "training": last("training", "loss"),
        "validation": last("validation", "val_loss"),
        "probes": last("probes", "probe_linear"),
        "baselines": read_baselines(run) or None,
    }


def _kind(metric: str) -> str:
    """Return the kind of measurement that a metric is part of."""
    return "validation" if metric.startswith("val_") else "probes" if metric in PROBES else "training"


def _tell_losses(title: str, step: int, loss: float | None, baselines: dict[str, Any]) -> None:
    """Print the loss of the model beside those of constant predictors."""
    table = Table(title, "", "against the mean target")
    for name, value in (
        *((described, baselines[name]) for name, described in BASELINES.items() if name in baselines),
        *([("model, before training", baselines["untrained"])] if "untrained" in baselines else []),
        (f"model, after {step} steps", loss),
    ):
        known = type(value) is float and baselines["mean"]  # a loss that is not finite is logged as null
        table.add_row(name, number(value, ".4f"), f"{value / baselines['mean'] - 1:+.1%}" if known else "")
    Console(highlight=False, markup=False, soft_wrap=True).print(table)
