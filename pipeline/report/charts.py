"""The chart in which each number of a run is shown, and which curve of that chart it is.

Charts are grouped by what stands before the slash. TensorBoard sorts groups by name, so these are chosen to come after
`loss`: metrics, optimizer, probes, progress, reading, speed, system.
"""

from typing import NamedTuple

from pipeline.metrics import OF_AVERAGE

TRAINING = "training"
VALIDATION = "validation"
AVERAGE = "average"  # of the weights, validated
_BASELINE = "baseline/"

# Charts of numbers of training whose own names do not tell
_CHARTS = {
    "loss": "loss",
    "lr": "optimizer/learning_rate",
    "grad_norm": "optimizer/gradient_norm",
    "images_per_second": "speed/images_per_second",
    "frames_per_second": "speed/frames_per_second",
    "samples_per_second": "speed/samples_per_second",
    "slowest_rank": "speed/slowest_rank_seconds",
    "mfu": "speed/mfu",
    "data_wait": "reading/wait",
    "bad_samples": "reading/bad_samples",
    "nonfinite_steps": "system/nonfinite_steps",
    "skipped_steps": "system/skipped_steps",
    "failed_saves": "system/failed_saves",
    "failed_writes": "system/failed_writes",
    "memory_gib": "system/memory_gib",
    "epoch": "progress/epoch",
    "samples_seen": "progress/samples_seen",
    "hours_left": "progress/hours_left",
}
# Charts of what is measured on validation samples
_SCORES = {
    "loss": "loss",
    "top1": "metrics/top1",
    "top5": "metrics/top5",
    "bad_samples": "reading/bad_samples",
}
PROBES = {
    "probe_linear": "probes/linear",
    "probe_knn": "probes/knn",
    "probe_seconds": "probes/seconds",
    "attended_tokens": "probes/attended_tokens",
    "attended_tokens_median": "probes/attended_tokens_median",
    "effective_rank": "probes/effective_rank",
}


class Curve(NamedTuple):
    """A curve in a chart."""

    chart: str
    name: str


def curve_of(metric: str) -> Curve:
    """Return the curve that shows a metric, by its name in metrics.jsonl, or `baseline/NAME` for a baseline."""
    if metric.startswith(_BASELINE):
        return _of_baseline(metric.removeprefix(_BASELINE))
    if metric.startswith("val_"):
        score, average, _ = metric.removeprefix("val_").partition(OF_AVERAGE)
        score, suffix = _of_images(score)
        return Curve(_SCORES.get(score, f"metrics/{score}"), AVERAGE if average else f"{VALIDATION}{suffix}")
    if metric in PROBES:
        return Curve(PROBES[metric], VALIDATION)
    if metric.startswith(("samples/", "bad_samples/")):  # of a data set of a mixture
        return Curve(f"reading/{metric}", TRAINING)
    if metric.startswith("loss/"):  # of a medium, in a mixture of images and videos
        return Curve("loss", f"{TRAINING}-{metric.removeprefix('loss/')}")
    if metric.startswith("data/"):
        return Curve(f"reading/{metric.removeprefix('data/')}", TRAINING)
    return Curve(_CHARTS.get(metric, metric), TRAINING)


def flat_name(metric: str) -> str:
    """Return a name for boards on which a chart is one curve: `loss/validation`, `speed/images_per_second`."""
    chart, curve = curve_of(metric)
    return chart if curve == TRAINING and "/" in chart else f"{chart}/{curve}"


def _of_baseline(name: str) -> Curve:
    """Return the curve of a predictor that learns nothing, `mean` or `mean_top1`, or of the untrained encoder."""
    if name in PROBES:
        return Curve(PROBES[name], "baseline-untrained")
    name, suffix = _of_images(name)
    constant, _, score = name.partition("_")
    return Curve(_SCORES.get(score or "loss", f"metrics/{score}"), f"baseline-{constant}{suffix}")


def _of_images(name: str) -> tuple[str, str]:
    """Return a name without the prefix of `data.validation_images`, and the suffix of its curve."""
    return (name.removeprefix("images_"), "-images") if name.startswith("images_") else (name, "")
