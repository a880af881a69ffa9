"""Discrete tokens as a target.

Algorithm: Wei et al., "Masked Feature Prediction for Self-Supervised Visual Pre-Training", CVPR 2022, section 3, after
Bao et al., "BEiT", ICLR 2022: cross entropy of the ids of masked patches, without smoothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from model.dvae import dvae_file, load_dvae
from model.layout import Mask
from model.weights_file import WeightsError
from pipeline.targets.classes import Classes, as_targets
from pipeline.targets.settings import TargetSettings
from pipeline.targets.target import Computing, Predictions, TargetError
from pipeline.targets.tokens.dvae import Dvae
from pipeline.targets.tokens.tokenizer import Tokenizer
from pipeline.targets.tokens.words import Words, is_words, read_words, source_class


class Tokens(Classes):
    """The ids that a tokenizer gives to patches. See `Target`.

    Args:
        tokenizer: of the model's grid of predictions.
    """

    label: ClassVar[str] = "tokens"
    described: ClassVar[str] = "the discrete tokens"
    requires: ClassVar[tuple[str, ...]] = ("tokenizer",)
    accepts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.width = tokenizer.size
        self.identity: dict[str, Any] = {"target.kind": "tokens"} | tokenizer.identity
        self._tokenizer = tokenizer

    @staticmethod
    def output_width(settings: TargetSettings, predictions: Predictions) -> int:
        """See `Target`. Reads the tokenizer's sizes from its files."""
        with _told_of_the_tokenizer():
            path = _tokenizer(settings)
            return read_words(path).size if is_words(path) else load_dvae(dvae_file(path)).tokens

    @staticmethod
    def macs(settings: TargetSettings, predictions: Predictions) -> int:
        """See `Target`."""
        path, grid = _tokenizer(settings), predictions.layout
        with _told_of_the_tokenizer():
            if not is_words(path):
                return load_dvae(dvae_file(path)).macs(grid.rows, grid.columns)
            words = read_words(path)
            return source_class(words.source).macs(words.source, predictions) + grid.cells * words.centroids.numel()

    @classmethod
    def build(cls, settings: TargetSettings, predictions: Predictions, computing: Computing) -> Self:
        """See `Target`."""
        path = _tokenizer(settings)
        with _told_of_the_tokenizer():
            if is_words(path):
                return cls(Words(read_words(path), predictions, computing))
            return cls(Dvae(dvae_file(path), predictions, computing))

    def describe(self, inputs: Tensor, mask: Mask) -> Tensor:
        """See `Target`; targets are float32 (masked, 1, 2), see `Classes`."""
        return as_targets(self._tokenizer.ids(inputs, mask))

    def paint(self, inputs: Tensor, targets: Tensor, outputs: Tensor | None = None) -> Tensor:
        """See `Target`: as the tokenizer renders its ids."""
        return self._tokenizer.paint(inputs, self._likeliest(targets, outputs))


def _tokenizer(settings: TargetSettings) -> Path:
    assert settings.tokenizer is not None  # required
    return settings.tokenizer


@contextmanager
def _told_of_the_tokenizer() -> Iterator[None]:
    """Turn what is wrong with a tokenizer's files into an error that names the setting."""
    try:
        yield
    except WeightsError as error:
        raise TargetError(f"target.tokenizer: {error}") from error
