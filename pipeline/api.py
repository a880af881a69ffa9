"""The interface for notebooks and other programs: data, targets, masks, and trained weights.

The names below, their arguments and results are stable between versions; docs/reference/api.md has examples. Other
modules may change.
"""

import sys
from collections.abc import Iterator, Sequence

import torch

from model.layout import Mask as Mask
from model.maskfeat import MaskFeat as MaskFeat
from pipeline.build import build_examples
from pipeline.build import build_model as build_model
from pipeline.config import Recipe as Recipe
from pipeline.config import load_recipe as load_recipe
from pipeline.data.batch import Batch as Batch
from pipeline.data.exact import ExactData
from pipeline.data.pictures import read_pictures as read_pictures
from pipeline.data.stream import StreamData
from pipeline.data.training_data import Part, TrainingData
from pipeline.examples import Example as Example
from pipeline.masks.blocks import block_masks as block_masks
from pipeline.masks.cubes import cube_masks as cube_masks
from pipeline.masks.scattered import random_masks as random_masks
from pipeline.pixels import normalise as normalise
from pipeline.predict.predict import Prediction as Prediction
from pipeline.predict.predict import predict as predict
from pipeline.settings import ConfigError as ConfigError
from pipeline.targets.hog import hog_target as hog_target
from pipeline.trained import PLAIN
from pipeline.trained import Trained as Trained
from pipeline.trained import open_trained as open_trained
from shards.build import build as build_shards

__all__ = [
    "Batch",
    "ConfigError",
    "Example",
    "Mask",
    "MaskFeat",
    "Prediction",
    "Recipe",
    "Trained",
    "block_masks",
    "build_model",
    "build_shards",
    "cube_masks",
    "hog_target",
    "load_model",
    "load_recipe",
    "normalise",
    "open_trained",
    "predict",
    "random_masks",
    "read_pictures",
    "training_batches",
]


def training_batches(
    recipe: Recipe, *, steps: int | None = None, first_step: int = 0, device: str = "cpu"
) -> Iterator[tuple[Batch, Example]]:
    """Yield the batches that a run trains on: the same samples, crops, masks and targets, in the same order.

    Args:
        recipe: a recipe of pre-training; its `data.shards` is read, and a batch has `optim.batch_size` inputs.
        steps: number of batches; None: without end.
        first_step: the first batch, counted from 0; any one is available at once.
        device: the device of the batches.

    Yields:
        For each step a `Batch`, which has the decoded uint8 inputs (B, 3, H, W) and the ids of the samples, and an
        `Example`, which has the augmented and normalised inputs in fp32, the mask, and the targets of the masked
        patches. Clips are (B, 3, frames, H, W), and images of a `data.mixture` with videos (B, 3, 1, H, W).

    Raises:
        ConfigError: the recipe is not valid, or a file for the target cannot be used.
        ShardError, DataError: the data set cannot be read.
    """
    where = torch.device(device)
    plain = recipe.model_copy(update={"engine": PLAIN})
    with torch.device("meta"):  # only the grids of the model matter
        model = build_model(plain)
    plain.micro_batch(1)  # refuses a batch that a run refuses
    inputs = recipe.optim.batch_size // recipe.masks
    part = Part(inputs, inputs, recipe.run.seed, where)
    data: TrainingData = (StreamData if recipe.data.mode == "stream" else ExactData)(recipe.data, part)
    try:
        examples = build_examples(plain, model, torch.float32, where, single_frames=len(data.media) > 1)
        for batch in data.batches(first_step, sys.maxsize if steps is None else steps):
            yield batch, examples.training_example(batch.inputs, batch.keys, recipe.masks, recipe.augment)
    finally:
        data.close()


def load_model(weights: str, step: int | None = None, overrides: Sequence[str] = ()) -> MaskFeat:
    """Return a pre-training model with its head, for evaluation on the CPU.

    Args:
        weights: a run.dir of pre-training, or a folder of `maskfeat export --format maskfeat`.
        step, overrides: see `open_trained`.

    Raises:
        CheckpointError, ConfigError, WeightsError: the weights do not exist, or lack the head.
    """
    model = open_trained(weights, step, overrides).model
    if model is None:
        raise ConfigError(f"{weights} has only an encoder: give a run.dir, or an export with --format maskfeat")
    return model
