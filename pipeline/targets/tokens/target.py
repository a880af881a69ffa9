"""Discrete tokens as a target.

Algorithm: Wei et al., "Masked Feature Prediction for Self-Supervised Visual Pre-Training", CVPR 2022, section 3, after
Bao et al., "BEiT", ICLR 2022: cross entropy of the ids of masked patches, without smoothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from model.dvae import dvae_file, load_dvae
from model.layout import Mask
from model.weights_file import WeightsError
from pipeline.targets.classes import Classes, as_targets
from pipeline.targets.settings import TargetSettings
from pipeline.targets.target import Computing, Predictions, TargetError
from pipeline.targets.teacher import TeacherError
from pipeline.targets.tokens.dvae import Dvae
from pipeline.targets.tokens.tokenizer import Tokenizer
from pipeline.targets.tokens.words import Words, WordsFile, is_words, read_words, source_class


class Tokens(Classes):
    """The ids that a tokenizer assigns to patches. See `Target`.

    Args:
        tokenizer: a tokenizer for the model's grid of predictions.
    """

    label: ClassVar[str] = "tokens"
    described: ClassVar[str] = "the discrete tokens"
    requires: ClassVar[tuple[str, ...]] = ("tokenizer",)
    accepts: ClassVar[tuple[str, ...]] = ("teacher", "teacher_weights")  # for words whose teacher has moved

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
            words = _words(path, settings)
            return source_class(words.source).macs(words.source, predictions) + grid.cells * words.centroids.numel()

    @classmethod
    def build(cls, settings: TargetSettings, predictions: Predictions, computing: Computing) -> Self:
        """See `Target`."""
        path = _tokenizer(settings)
        with _told_of_the_tokenizer():
            if is_words(path):
                return cls(Words(_words(path, settings), predictions, computing))
            return cls(Dvae(dvae_file(path), predictions, computing))

    def describe(self, inputs: Tensor, mask: Mask) -> Tensor:
        """See `Target`; targets are float32 (masked, 1, 2), see `Classes`."""
        return as_targets(self._tokenizer.ids(inputs, mask))

    def paint(self, inputs: Tensor, targets: Tensor, outputs: Tensor | None = None) -> Tensor:
        """See `Target`: the tokenizer's rendering of its ids."""
        return self._tokenizer.paint(inputs, self._likeliest(targets, outputs))


def _tokenizer(settings: TargetSettings) -> Path:
    assert settings.tokenizer is not None  # required
    return settings.tokenizer


def _words(path: Path, settings: TargetSettings) -> WordsFile:
    """Read words, with the teacher of the settings, since it may have moved since they were found."""
    words = read_words(path)
    given = {key: value for key in Tokens.accepts if (value := getattr(settings, key)) is not None}
    return replace(words, source=words.source.model_copy(update=given))


@contextmanager
def _told_of_the_tokenizer() -> Iterator[None]:
    """Turn errors in a tokenizer's files into an error that names the setting."""
    try:
        yield
    except TeacherError as error:
        raise TargetError(f"the words of target.tokenizer are words of a teacher: {error}") from error
    except (WeightsError, OSError) as error:
        raise TargetError(f"target.tokenizer: {error}") from error
