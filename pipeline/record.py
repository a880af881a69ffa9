"""The recipe that a run recorded in its config.yaml and its checkpoints, and the parts that others may use."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from shards.secrets import MASK

_BESIDE = ("checkpoints", "metrics.jsonl", "tensorboard")  # present beside a config.yaml that a run wrote

Kind = Literal["pretrain", "finetune"]


def kind_of(settings: Mapping[str, Any]) -> Kind:
    """Return the kind of run that a recipe describes.

    `run.kind` names it. Recipes of earlier versions do not have that setting: those with a section `augment` are for
    fine-tuning.

    Args:
        settings: values by section and key, unchecked.
    """
    run = settings.get("run")
    kind = run.get("kind") if isinstance(run, Mapping) else None
    is_finetuning = kind == "finetune" or (kind != "pretrain" and "augment" in settings)
    return "finetune" if is_finetuning else "pretrain"


def to_be_given(path: Path, settings: Mapping[str, Mapping[str, Any]], overrides: Sequence[str]) -> str | None:
    """Return why a recorded recipe cannot be used until an override is given; None if it can.

    The reasons are masked secrets, and the source of a stream: this can be a command, and runs are passed on to
    others.

    Args:
        path: path of the recipe.
        settings: its values by section and key.
        overrides: "section.key=value".
    """
    given = {override.partition("=")[0].strip() for override in overrides}
    secret = [
        f"{section}.{key}"
        for section, keys in settings.items()
        for key, value in keys.items()
        if MASK in str(value) and f"{section}.{key}" not in given
    ]
    if secret:
        return f"{path}: {MASK} in {secret[0]} replaces a secret: give {secret[0]}=... again"
    path = path.resolve()
    is_record = path.name == "config.yaml" and any((path.parent / name).exists() for name in _BESIDE)
    streams = settings.get("data", {}).get("mode") == "stream" or "data.mode" in given
    if is_record and streams and "data.shards" not in given:
        return f"{path} is the record of a run, from which nothing is streamed: give data.shards=..."
    return None
