"""Join the data sets of a run: one manifest, one order, one identity, and the locations of samples."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from pipeline.data.errors import DataError
from pipeline.data.mixture import MIXTURE_VERSION, mixture_of, whole
from pipeline.data.order import Int64s, Order
from pipeline.data.plan import PLAN_VERSION, Plan
from pipeline.data.settings import Data
from shards.files import ShardError
from shards.manifest import Manifest
from shards.text import counted, excerpt

_NAMES = 65_536  # rows of the manifest read at once to name a sample: a row group
_PATIENCE = 20.0  # seconds to wait for a store when looking up a name


class DataSets:
    """The data set of `data.shards`, or those of `data.mixture`, numbered in the order of their names, images first.

    Args:
        data: the settings that name them.
        labelled: whether labels are used, which then must have the same meaning; None: as in `data`.

    Attributes:
        manifest: that of all.
        of_both_media: whether a mixture has data sets of images and of videos.

    Raises:
        ShardError: a data set does not exist.
        DataError: they cannot be mixed.
    """

    def __init__(self, data: Data, labelled: bool | None = None) -> None:
        self._data, self._mixed = data, data.mixture is not None
        if data.mixture is None:
            assert data.shards is not None  # which the settings ensure
            self.manifest = Manifest.load(data.shards)
            self._parts, self._names = [self.manifest], [""]
        else:
            found = {name: Manifest.load(data.mixture[name].shards) for name in data.mixture}
            self._names = sorted(found, key=lambda name: (sorted(found[name].media), name))
            parts = [found[name] for name in self._names]
            self._check(parts, data.labelled if labelled is None else labelled)
            self.manifest, self._parts = Manifest.joined(parts)
            given = [data.mixture[name].weight for name in self._names]
            self._weights = whole([weight or len(part) for weight, part in zip(given, parts, strict=True)])
        self.of_both_media = self._mixed and len(self.manifest.media) > 1
        self._first_ids = np.cumsum([0, *(len(part) for part in self._parts[:-1])])
        self._names_of = lru_cache(maxsize=4)(self._read_names)

    def _check(self, parts: Sequence[Manifest], labelled: bool) -> None:
        """Raise DataError where data sets cannot be mixed."""
        first = self._names[0]
        for name, part in zip(self._names, parts, strict=True):
            if len(part.media) > 1:
                raise DataError(
                    f"data.mixture: {name} has {_kinds(part)}, but a batch has only one kind: build a data set of each"
                )
            if labelled and part.media != parts[0].media:
                raise DataError(
                    f"data.mixture: {first} has {_kinds(parts[0])} and {name} has {_kinds(part)}, but a classifier is "
                    "trained on one kind: leave out the data sets of the other"
                )
            if labelled and part.classes != parts[0].classes:
                odd = sorted({*part.classes} ^ {*parts[0].classes})
                why = f"only one of them has {excerpt(repr(odd[0]))}" if odd else "they are in another order"
                raise DataError(
                    f"data.mixture: {first} and {name} do not have the same classes ({why}): build both from the same"
                )
        roots: dict[str, str] = {}
        for name, part in zip(self._names, parts, strict=True):
            if part.identity in roots:
                raise DataError(
                    f"data.mixture: {roots[part.identity]} and {name} are the same data set: list it once, with a "
                    "larger weight"
                )
            roots[part.identity] = name

    @property
    def identity(self) -> dict[str, Any]:
        """Return what decides the samples and their order besides the settings, by name, as JSON values."""
        if not self._mixed:
            return {"data.shards (manifest)": self.manifest.identity, "plan version": PLAN_VERSION}
        identity: dict[str, Any] = {"plan version": PLAN_VERSION, "mixture version": MIXTURE_VERSION}
        for name, part, weight in zip(self._names, self._parts, self._weights, strict=True):
            identity[f"data.mixture.{name} (manifest)"] = part.identity
            identity[f"data.mixture.{name} (share)"] = f"{weight}/{sum(self._weights)}"
        return identity

    def of_medium(self, medium: str) -> Manifest:
        """Return the manifest of the data sets of a medium."""
        parts = [part for part in self._parts if medium in part.media]
        return parts[0] if len(parts) == 1 else Manifest.joined(parts)[0]

    def order(self, seed: int, batch_size: int) -> Order:
        """Return the order of their samples, with `batch_size` per step."""
        lanes, block = self._data.lanes, self._data.block
        if not self._mixed:
            return Plan(self.manifest.counts, seed, lanes, block)
        counts, media = [part.counts for part in self._parts], [part.noun for part in self._parts]
        return mixture_of(counts, self._weights, seed, lanes, block, batch_size, media)

    @property
    def notes(self) -> list[str]:
        """Return lines on a mixture for the operator, one per data set."""
        if not self._mixed:
            return []
        samples, weights = len(self.manifest), sum(self._weights)
        of_both = (
            "data.mixture has images and videos: every step takes one of them, and an image is a clip of one frame"
        )
        return [of_both] * self.of_both_media + [
            f"data.mixture.{name}: {counted(len(part), part.noun)}, {weight / weights:.1%} of the model's inputs; "
            f"{samples * weight / weights / len(part):.3g} of its own epochs per epoch of the run"
            for name, part, weight in zip(self._names, self._parts, self._weights, strict=True)
        ]

    @property
    def remedy(self) -> str:
        """Return the advice on bad samples."""
        verify = "verify` on its data set" if self._mixed else f"verify {self.manifest.root}`"
        return f"run `maskfeat-shards {verify} and restore what it names"

    def counts(self, samples: Sequence[int]) -> dict[str, int]:
        """Count samples by the name of their data set; empty without a mixture."""
        if not self._mixed:
            return {}
        numbers = np.bincount(self.numbers(np.asarray(samples, np.int64)), minlength=len(self._names))
        return dict(zip(self._names, numbers.tolist(), strict=True))

    def where(self, samples: Sequence[int]) -> list[dict[str, str]]:
        """Return the locations of bad samples, for people: data set, key, path in the source, and shard.

        Where a manifest can no longer be read, key and path are missing; that is not worth an error.
        """
        found, readable = [], True
        for sample, number in zip(samples, self.numbers(np.asarray(samples, np.int64)).tolist(), strict=True):
            part, own = self._parts[number], sample - int(self._first_ids[number])
            names = {"shard": part.shard_names[part.shard[own]]}
            if self._mixed:
                names = {"data_set": self._names[number]} | names
            chunk, row = divmod(own, _NAMES)
            try:
                if readable:
                    key, path = self._names_of(number, chunk)[row]
                    names = {"key": key, "path": path} | names
            except ShardError:
                readable = False  # wait for an unreachable store only once
            found.append(names)
        return found

    def numbers(self, samples: Int64s) -> Int64s:
        """Return the number of each sample's data set."""
        numbers: Int64s = np.searchsorted(self._first_ids, samples, side="right") - 1
        return numbers

    def _read_names(self, number: int, chunk: int) -> list[tuple[str, str]]:
        part, first = self._parts[number], chunk * _NAMES
        return part.names(first, min(first + _NAMES, len(part)), _PATIENCE)


def check_validation_images(data: Data, of_both_media: bool) -> None:
    """Raise DataError where `data.validation_images` is set and a run is not on images and videos."""
    if data.validation_images and not of_both_media:
        raise DataError(
            "data.validation_images is for pre-training on a data.mixture of images and videos: set it to null"
        )


def check_are_images(validation: Manifest) -> None:
    """Raise DataError where the samples of `data.validation_images` are not images."""
    if validation.video is not None:
        raise DataError(f"data.validation_images={validation.root} has videos: set data.validation to them")


def _kinds(manifest: Manifest) -> str:
    return " and ".join(f"{kind}s" for kind in sorted(manifest.media))
