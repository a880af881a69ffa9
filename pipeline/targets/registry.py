"""The registry of targets. To add one, write a class in a module of its own, and add a line here."""

import difflib

from pipeline.targets.features import Features
from pipeline.targets.hog.scales import HogScales
from pipeline.targets.hog.target import Hog
from pipeline.targets.labels import Labels
from pipeline.targets.pixels import Pixels
from pipeline.targets.settings import TargetSettings
from pipeline.targets.target import Computing, Predictions, Target
from pipeline.targets.tokens.target import Tokens

TARGETS: dict[str, type[Target]] = {
    "hog": Hog,
    "hog_scales": HogScales,
    "pixels": Pixels,
    "features": Features,
    "tokens": Tokens,
    "labels": Labels,
}


def checked(settings: TargetSettings) -> type[Target]:
    """Return the target class of the settings.

    Raises:
        ValueError: the kind is unknown, or a setting is missing or not used by it.
    """
    if settings.kind not in TARGETS:
        near = difflib.get_close_matches(settings.kind[:100], TARGETS, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(TARGETS)}"
        raise ValueError(f"target.kind={settings.kind[:100]} is not a kind of target: {remedy}")
    target = TARGETS[settings.kind]
    for name, field in TargetSettings.model_fields.items():
        given = field.default is None and getattr(settings, name) is not None
        if name in target.requires and not given:
            raise ValueError(f"target.kind={settings.kind} needs target.{name}: set it")
        if given and name not in (*target.requires, *target.accepts):
            kinds = [kind for kind, other in TARGETS.items() if name in (*other.requires, *other.accepts)]
            raise ValueError(
                f"target.kind={settings.kind} does not use target.{name}: "
                f"leave it out, or set target.kind to {' or '.join(kinds)}"
            )
    return target


def build_target(settings: TargetSettings, predictions: Predictions, computing: Computing) -> Target:
    """Build the target of the settings, for images or for the frames of clips.

    Raises:
        TargetError: a required file cannot be used.
        ValueError: see `checked`.
    """
    return checked(settings).build(settings, predictions.of_a_frame, computing)


def output_width(settings: TargetSettings, predictions: Predictions) -> int:
    """Return how many numbers the model predicts per patch. Raises ValueError, see `checked` and `Target`."""
    return checked(settings).output_width(settings, predictions.of_a_frame)


def macs(settings: TargetSettings, predictions: Predictions) -> int:
    """Count the multiply-adds of the target's networks for one input, for a clip over all described frames."""
    return checked(settings).macs(settings, predictions.of_a_frame) * predictions.layout.frames
