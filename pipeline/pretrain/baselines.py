"""baselines.json: the validation losses of a run beside which those of its model have to be read."""

from math import isfinite
from pathlib import Path
from typing import Any

from shards.files import parse_json

NAME = "baselines.json"
IMAGES = "images"  # the name of the validation set of images beside one of videos
# Of predicting zero, the mean target and, of clips, the nearest visible frame; of the untrained model, if it is known
LOSSES = ("zero", "mean", "copy", "untrained")


def file_of(name: str) -> str:
    """Return the file of a validation set's baselines, `NAME` for the one without a name."""
    return f"baselines-{name}.json" if name else NAME


def read_baselines(run: Path, file: str = NAME) -> dict[str, Any]:
    """The `LOSSES` of a run, and `of` which images they are; nothing where the file is missing, torn, or odd."""
    path = run / file
    try:
        found = parse_json(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict) or not {"zero", "mean"} <= found.keys():
        return {}
    losses = [found[name] for name in LOSSES if name in found]
    return found if all(isinstance(loss, float) and isfinite(loss) for loss in losses) else {}
