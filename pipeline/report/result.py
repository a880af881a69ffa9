"""The last lines that a complete run prints: its results, and the commands to run next."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.metrics import OF_AVERAGE
from pipeline.report.progress import Schedule, duration
from shards.text import counted

# Predictors that learn nothing, by their names in baselines.json
BASELINES = {
    "zero": "predicting zero",
    "mean": "predicting the training set's mean target",
    "copy": "copying the nearest visible frame",
}
# By their names in metrics.jsonl
ACCURACIES = {
    "val_top1": "top-1",
    "val_top5": "top-5",
    f"val_top1{OF_AVERAGE}": "top-1 of the average",
    f"val_top5{OF_AVERAGE}": "top-5 of the average",
    "probe_linear": "linear probe",
    "probe_knn": "k-NN probe",
}


def result(
    schedule: Schedule, seconds: float, metrics: Mapping[str, float], baselines: Mapping[str, float], run: Path
) -> list[str]:
    """Return lines on a run that is complete.

    Args:
        schedule: of its last attempt, which took so many `seconds`.
        metrics: the last value of each that was logged in this attempt.
        baselines: validation losses of predictors that learn nothing.
        run: its folder.
    """
    end, since = schedule.end, ""
    if schedule.first:
        since = f" since step {schedule.first:,}"
    samples, epochs = end * schedule.samples, end / schedule.steps_per_epoch
    lines = [
        f"complete: {counted(end, 'step')}, {epochs:.4g} epochs, {samples:,.0f} samples, {duration(seconds)}{since}"
    ]
    if "loss" in metrics:
        lines.append(f"training loss {metrics['loss']:.4f}")
    for of, prefix in (("", ""), (" of images", "images_")):  # the latter in a mixture of images and videos
        if (metric := f"val_{prefix}loss") in metrics:
            named = {name: baselines[prefix + name] for name in BASELINES if prefix + name in baselines}
            beside = "".join(f"; {BASELINES[name]} {loss:.4f}" for name, loss in named.items())
            lines.append(f"validation loss{of} {metrics[metric]:.4f}{beside}")
    if accuracies := [f"{name} {metrics[metric]:.1%}" for metric, name in ACCURACIES.items() if metric in metrics]:
        lines.append(f"accuracy: {', '.join(accuracies)}")
    return [*lines, f"checkpoint: {run / 'checkpoints' / f'step-{end:08d}'}"]


def next_commands(run: Path, commands: Sequence[str]) -> list[str]:
    """Return lines with commands to run next, and the one that shows the curves."""
    curves = f"tensorboard --logdir {shlex.quote(str(run))}"
    return [f"next: {command}" for command in (*commands, curves)]
