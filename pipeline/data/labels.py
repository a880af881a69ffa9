"""The labels of a training and a validation set, with common numbers."""

import numpy as np
from numpy.typing import NDArray

from pipeline.random import derive, uniform
from pipeline.settings import ConfigError
from shards.manifest import Manifest
from shards.text import excerpt

Int64s = NDArray[np.int64]

_HELD_OUT = 0x686F6C64  # the stream of randomness of this choice


def labels_of(training: Manifest, validation: Manifest, partly: bool = False) -> tuple[Int64s, Int64s]:
    """Return the labels of both sets as positions in the training set's classes, which are matched by name.

    Args:
        training, validation: the data sets.
        partly: whether one labelled sample of each is enough; those without a label then have -1.

    Raises:
        ConfigError: samples lack labels, or validation has classes that training lacks.
    """
    for manifest in (training, validation):
        unlabelled = int((manifest.label < 0).sum())
        if unlabelled > (len(manifest) - 1 if partly else 0):
            raise ConfigError(
                f"{manifest.root}: {unlabelled:,} of {len(manifest):,} samples have no label: build it again from a "
                "folder of class folders, or from a table with a label in every row"
            )
    number = {name: label for label, name in enumerate(training.classes)}
    if unknown := [name for name in validation.classes if name not in number]:
        raise ConfigError(
            f"{validation.root}: {len(unknown):,} of its {len(validation.classes):,} classes, such as "
            f"{excerpt(repr(unknown[0]))}, are not classes of {training.root}: build both from the same classes"
        )
    renumbered = np.array([*(number[name] for name in validation.classes), -1], dtype=np.int64)  # the last one for -1
    return training.label.astype(np.int64), renumbered[validation.label]


def held_out(ids: Int64s, share: float) -> NDArray[np.bool_]:
    """Return which training samples are held out for selection, (n,): the same in every probe of a data set."""
    return uniform(derive(np.full_like(ids, _HELD_OUT), ids)) < share
