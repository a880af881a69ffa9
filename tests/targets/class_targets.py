"""Shared parts of the tests of class targets: a grid, random images, words of HOG."""

from pathlib import Path

import torch
from torch import Tensor

from model.layout import Layout
from pipeline.targets.hog import hog_target
from pipeline.targets.settings import TargetSettings
from pipeline.targets.target import Computing, Predictions
from pipeline.targets.tokens.words import write_words

COMPUTING = Computing(torch.float32, torch.device("cpu"))
GRID = Predictions(Layout(1, 4, 4), (1, 16, 16))


def random_images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def hog_words(folder: Path, words: int = 6, seed: int = 0) -> Path:
    """Write words of HOG that are patches of random images."""
    patches = hog_target(random_images(8, 3, 64, 64)).flatten(0, 1)
    chosen = patches[torch.randperm(len(patches), generator=torch.Generator().manual_seed(seed))[:words]]
    write_words(folder, chosen, TargetSettings(), {"target.kind": "hog"}, {})
    return folder
