"""Find the images whose features are nearest to those of given images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.errors import DataError
from pipeline.data.loader import Loader
from pipeline.data.request import centre_request
from pipeline.progress_bar import tracked
from pipeline.trained import Trained
from shards.manifest import Manifest

_AT_ONCE = 64  # images that are encoded together


class Bank(Protocol):
    """Images in which neighbours are searched.

    Attributes:
        features: float32 (n, width), on the CPU.
    """

    features: Tensor

    def names(self, places: Sequence[int]) -> list[str]:
        """Return the names of the images at some places."""
        ...

    def images(self, places: Sequence[int]) -> Tensor:
        """Return the images at some places, uint8 (k, 3, H, W)."""
        ...


class GivenImages:
    """A `Bank` of images in memory.

    Args:
        images: uint8 (n, 3, H, W).
        names: names of the images.
        features: features of the images.
    """

    def __init__(self, images: Tensor, names: Sequence[str], features: Tensor) -> None:
        self.features, self._images, self._names = features, images, names

    def names(self, places: Sequence[int]) -> list[str]:
        """See `Bank`."""
        return [self._names[place] for place in places]

    def images(self, places: Sequence[int]) -> Tensor:
        """See `Bank`."""
        return self._images[list(places)]


class ShardImages:
    """A `Bank` of images of a data set, without those that cannot be read.

    Args:
        shards: folder or URL of the data set.
        trained: the encoder.
        samples: the most images to use, spread evenly over the data set.

    Raises:
        ShardError: the data set does not exist.
        DataError: it has videos, or too many images cannot be used.
    """

    def __init__(self, shards: str, trained: Trained, samples: int) -> None:
        self._manifest = Manifest.load(shards)
        self._data = data = trained.recipe.data.model_copy(update={"shards": shards, "mixture": None, "mode": "exact"})
        self._loader = Loader(self._manifest, data, _AT_ONCE, trained.device)
        count = min(samples, len(self._manifest))
        ids = np.arange(count, dtype=np.int64) * len(self._manifest) // count
        requests = [
            centre_request(self._manifest, data, ids[start : start + _AT_ONCE], 1.0)
            for start in range(0, count, _AT_ONCE)
        ]
        kept, features = [], []
        for batch in tracked(self._loader.batches(requests), "features", len(requests)):
            good = (batch.weights > 0).cpu()
            kept.append(torch.from_numpy(batch.request.ids)[good])
            features.append(trained.features(batch.inputs).cpu()[good])
        self._ids, self.features = torch.cat(kept).numpy(), torch.cat(features)
        if not len(self._ids):
            raise DataError(f"{shards}: none of its images can be used: run `maskfeat-shards verify`")

    def names(self, places: Sequence[int]) -> list[str]:
        """Return the classes of images, or their keys without classes; see `Bank`."""
        manifest, ids = self._manifest, self._ids[list(places)].tolist()
        labels = manifest.label[ids].tolist()
        return [
            manifest.classes[label] if label >= 0 else manifest.key(sample)
            for label, sample in zip(labels, ids, strict=True)
        ]

    def images(self, places: Sequence[int]) -> Tensor:
        """See `Bank`."""
        (batch,) = self._loader.batches([centre_request(self._manifest, self._data, self._ids[list(places)], 1.0)])
        return batch.inputs.cpu()

    def close(self) -> None:
        """Stop the decoding threads."""
        self._loader.close()


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest images of one image, nearest first.

    Attributes:
        cosines: float32 (k,), descending.
        images: uint8 (k, 3, H, W).
        names: names of the images.
    """

    cosines: Tensor
    images: Tensor
    names: list[str]


def nearest(features: Tensor, bank: Bank, count: int, itself: bool = False) -> list[Neighbours]:
    """Return the nearest images of each of B images, by the cosine of their features.

    Args:
        features: float32 (B, width).
        bank: the images to search.
        count: number of neighbours per image; fewer where the bank has fewer.
        itself: whether the bank is the B images themselves; none is its own neighbour.
    """
    cosines = F.normalize(features, dim=1) @ F.normalize(bank.features, dim=1).T
    if itself:
        cosines.fill_diagonal_(-torch.inf)
    best, places = cosines.topk(min(count, len(bank.features) - itself), dim=1)
    return [
        Neighbours(of_one, bank.images(where), bank.names(where))
        for of_one, where in zip(best, places.tolist(), strict=True)
    ]
