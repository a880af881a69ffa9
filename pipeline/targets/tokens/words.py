"""Visual words: the nearest of a few typical patches, found by `maskfeat words` in the data set itself.

After HuBERT (Hsu et al., 2021), whose targets are clusters of hand-made features first and of its own later, and
ClusterMIM (Du et al., "On the Role of Discrete Tokenization in Visual Representation Learning", ICLR 2024), where a few
clusters of pixels serve masked image modelling better than thousands of learned tokens.

    words.safetensors   `centroids`, float32 (words, width)
    words.json          their target, and how well they fit the data set that they were found in
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.layout import Mask
from model.weights_file import WeightsError, load
from model.writing import write_tensors
from pipeline.targets.features import Features
from pipeline.targets.hog.target import Hog
from pipeline.targets.pixels import Pixels
from pipeline.targets.settings import TargetSettings
from pipeline.targets.target import Computing, Predictions, Target, TargetError
from shards.files import parse_json, sha256_of

WEIGHTS, DESCRIPTION = "words.safetensors", "words.json"
_VERSION = 1
_SOURCES: dict[str, type[Target]] = {"hog": Hog, "pixels": Pixels, "features": Features}


@dataclass(frozen=True, eq=False)
class WordsFile:
    """The contents of a folder of words.

    Attributes:
        folder: path, for messages.
        centroids: float32 (words, width).
        source: settings of the target that the words cluster.
        source_identity: `Target.identity` of that target when the words were found.
    """

    folder: Path
    centroids: Tensor
    source: TargetSettings
    source_identity: dict[str, Any]

    @property
    def size(self) -> int:
        """The number of words."""
        return len(self.centroids)


class Words:
    """The `Tokenizer` of visual words: the nearest centroid to a patch's source target.

    Args:
        words: a result of `read_words`.
        predictions, computing: as in `Target.build`.

    Raises:
        TargetError: the words belong to other patches, or to another teacher.
    """

    def __init__(self, words: WordsFile, predictions: Predictions, computing: Computing) -> None:
        source = source_class(words.source).build(words.source, predictions, computing)
        if source.width != words.centroids.shape[1]:
            raise TargetError(
                f"target.tokenizer: the words in {words.folder} have {words.centroids.shape[1]} numbers, and a patch "
                f"of this model has {source.width}: find words with the same patch size"
            )
        if source.identity != words.source_identity:
            raise TargetError(
                f"target.tokenizer: the words in {words.folder} were found with another teacher than "
                f"{words.source.teacher} is now: find them again with `maskfeat words`"
            )
        self.size = words.size
        self.identity: dict[str, Any] = {"target.tokenizer": sha256_of(words.folder / WEIGHTS)} | {
            f"target.words of.{key}": value for key, value in source.identity.items()
        }
        self._source = source
        self._centroids = words.centroids.to(computing.device)

    def ids(self, inputs: Tensor, mask: Mask) -> Tensor:
        """See `Tokenizer`."""
        return nearest(self._source.describe(inputs, mask), self._centroids)[0]

    def paint(self, inputs: Tensor, ids: Tensor) -> Tensor:
        """See `Tokenizer`: the typical patches themselves."""
        centroids = self._centroids.to(ids.device)
        # All words decide the colours, so that predictions can be compared with targets
        return self._source.paint(inputs, centroids[None, None], centroids[ids])


def nearest(vectors: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest centroid of each vector by one matrix product.

    Args:
        vectors: float32 (n, width).
        centroids: float32 (words, width).

    Returns:
        The centroid's number, int64 (n,), and its squared distance, float32 (n,).
    """
    partial = torch.addmm(centroids.square().sum(1), vectors, centroids.T, alpha=-2)  # without the vector's own length
    distance, ids = partial.min(1)
    return ids, (distance + vectors.square().sum(1)).clamp(min=0)


def is_words(path: Path) -> bool:
    """Return whether `write_words` wrote this folder."""
    return (path / DESCRIPTION).is_file()  # OSError for an invalid file name


def source_class(settings: TargetSettings) -> type[Target]:
    """Return the class of the target that words cluster."""
    return _SOURCES[settings.kind]


def write_words(
    folder: Path, centroids: Tensor, source: TargetSettings, identity: dict[str, Any], found: dict[str, Any]
) -> None:
    """Write words; the description comes last.

    Args:
        centroids: float32 (words, width).
        source, identity: settings of the target that they cluster, and its `Target.identity`.
        found: how they were found, and how well they fit that data set, as JSON values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors({"centroids": centroids.cpu()}, folder / WEIGHTS)
    description = {
        "version": _VERSION,
        "of": source.model_dump(mode="json"),
        "identity": identity,
        "sha256": sha256_of(folder / WEIGHTS),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description | found, indent=1) + "\n", "utf-8")


def read_words(folder: Path) -> WordsFile:
    """Read the output of `write_words`. Raises WeightsError for anything else."""
    try:
        description = parse_json((folder / DESCRIPTION).read_bytes())
        if description["version"] != _VERSION:
            raise WeightsError(f"{folder} was written by another version: find the words again with `maskfeat words`")
        source = TargetSettings.model_validate(description["of"])
        if source.kind not in _SOURCES:
            raise ValueError(f"words of {source.kind}")
        centroids = load(folder / WEIGHTS)["centroids"]
        if not (centroids.ndim == 2 and centroids.dtype == torch.float32 and centroids.isfinite().all()):
            raise ValueError(f"centroids {tuple(centroids.shape)} of {centroids.dtype}")
        if description["sha256"] != sha256_of(folder / WEIGHTS):
            raise WeightsError(
                f"{folder}: {WEIGHTS} is not the file that {DESCRIPTION} describes: find the words again"
            )
        return WordsFile(folder, centroids, source, description["identity"])
    except WeightsError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{folder} was not written by `maskfeat words`, or is damaged ({reason})") from None
