"""Predict the masked patches of a few images with a pre-training model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.layout import spread
from pipeline.build import build_examples
from pipeline.config import Recipe
from pipeline.pretrain.picture import panels_of
from pipeline.random import derive
from pipeline.targets.hog.glyphs import ENLARGED
from pipeline.trained import PLAIN, Trained


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Predictions of B images, painted, and their losses.

    Attributes:
        label: the target in a title, such as "HOG".
        hidden: bool (B, rows, columns), True where the image is hidden from the model.
        target: targets of all patches, float64 (B, 3, height, width) in [0, 1].
        predicted: the prediction at hidden patches, beside the dimmed target elsewhere, of the same shape and range.
        losses: losses of the model, float32 (B,).
        losses_of_zero: losses of predicting zero everywhere, float32 (B,).
    """

    label: str
    hidden: Tensor
    target: Tensor
    predicted: Tensor
    losses: Tensor
    losses_of_zero: Tensor


def reconstruct(trained: Trained, images: Tensor, seed: int = 0) -> Reconstruction:
    """Mask images and predict the masked patches.

    Args:
        trained: weights of a whole model for images.
        images: uint8 (B, 3, H, W) of the recipe's size.
        seed: seed of the masks.

    Raises:
        ConfigError: a file for the target cannot be used.
    """
    model, recipe = trained.model, trained.recipe
    assert model is not None and isinstance(recipe, Recipe)
    plain = recipe.model_copy(update={"engine": PLAIN})  # compiling takes longer than a few images do
    examples = build_examples(plain, model, torch.float32, trained.device)
    target, images, batch = examples.target, images.to(trained.device), len(images)
    with torch.no_grad():
        example = examples.example(images, derive(torch.full((batch,), seed), torch.arange(batch)).to(trained.device))
        outputs = model(example.inputs, example.mask)
        losses = target.losses(outputs, example.targets, batch)
        losses_of_zero = target.losses(torch.zeros_like(outputs), example.targets, batch)
        truth = examples.targets(images)
    layout = examples.predictions.layout
    hidden = spread(example.mask.cells, layout).view(batch, layout.rows, layout.columns)
    _, _, painted, predicted = panels_of(
        target, images, example.mask.cells, truth, outputs, examples.predictions, ENLARGED
    )
    return Reconstruction(target.label, hidden.cpu(), painted, predicted, losses.cpu(), losses_of_zero.cpu())
