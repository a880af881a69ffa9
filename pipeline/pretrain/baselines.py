"""Read baselines.json: validation losses to compare the model's loss with."""

from math import isfinite
from pathlib import Path
from typing import Any

from shards.files import parse_json

NAME = "baselines.json"
IMAGES = "images"  # the name of a validation set of images besides one of videos
# Losses of predicting zero, the mean target and, for clips, the nearest visible frame; of the untrained model, if known
LOSSES = ("zero", "mean", "copy", "untrained")


def file_of(name: str) -> str:
    """Return the file of a validation set's baselines, `NAME` for the one without a name."""
    return f"baselines-{name}.json" if name else NAME


def read_baselines(run: Path, file: str = NAME) -> dict[str, Any]:
    """Return the `LOSSES` of a run, and in `of` their images; empty where the file is missing, torn, or invalid."""
    path = run / file
    try:
        found = parse_json(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict) or not {"zero", "mean"} <= found.keys():
        return {}
    losses = [found[name] for name in LOSSES if name in found]
    return found if all(isinstance(loss, float) and isfinite(loss) for loss in losses) else {}
