"""Draw a sheet of trained weights' results for images: reconstruction, attention, nearest neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.predict.neighbours import Bank, GivenImages, Neighbours, nearest
from pipeline.predict.reconstruction import Reconstruction, reconstruct
from pipeline.predict.sheet import Column, Picture, covered, enlarged, heat, mosaic, panel_size, sheet
from pipeline.probe.attention import attention_weights, looked_at
from pipeline.trained import Trained

NEIGHBOURS = 9  # most neighbours per image


@dataclass(frozen=True, eq=False)
class Prediction:
    """The results of weights for B images.

    Attributes:
        images: uint8 (B, 3, H, W).
        names: names of the images.
        reconstruction: None where the weights do not have a pre-training head.
        attention: the last block's attention to patches, averaged over queries and heads, float32 (B, rows, columns).
        neighbours: those of each image; empty without other images.
        classes: the likeliest class of each image and its probability; empty where there is no classifier.
    """

    images: Tensor
    names: list[str]
    reconstruction: Reconstruction | None
    attention: Tensor
    neighbours: list[Neighbours]
    classes: list[tuple[str, float]]

    def draw(self) -> Picture:
        """Return a sheet with one row per image: uint8 (height, width, 3)."""
        size, nothing = panel_size(self.images), [""] * len(self.images)
        captions = self.names
        if self.classes:
            named = zip(self.names, self.classes, strict=True)
            captions = [f"{name}: {label} {share:.0%}" for name, (label, share) in named]
        columns = [Column("image", enlarged(self.images, size), captions)]
        if made := self.reconstruction:
            losses = [
                f"loss {loss:.4f} (predicting zero: {zero:.4f})"
                for loss, zero in zip(made.losses.tolist(), made.losses_of_zero.tolist(), strict=True)
            ]
            columns += [
                Column("what the model sees", covered(self.images, made.hidden, size), nothing),
                Column(f"{made.label} of the image", enlarged(made.target, size), nothing),
                Column(f"{made.label} predicted where masked", enlarged(made.predicted, size), losses),
            ]
        columns.append(Column("attention of the last block", heat(self.images, self.attention, size), nothing))
        if self.neighbours:
            names = [f"nearest: {near.names[0]}" for near in self.neighbours]
            mosaics = [mosaic(near, size) for near in self.neighbours]
            columns.append(Column("nearest neighbours", mosaics, names))
        return sheet(columns)


def predict(
    trained: Trained, images: Tensor, names: Sequence[str], bank: Bank | None = None, seed: int = 0
) -> Prediction:
    """Reconstruct images, and compute attention and nearest neighbours.

    Args:
        trained: weights of images.
        images: uint8 (B, 3, H, W) of the recipe's size.
        names: names of the images.
        bank: the images to search for neighbours; None: the images themselves.
        seed: seed of the masks.

    Raises:
        ConfigError: a file for the target cannot be used.
    """
    encoder, statistics = trained.encoder, trained.recipe.model.statistics
    looked = []
    for image in images.to(trained.device):  # one at a time: attention takes much memory
        weights = attention_weights(encoder, image[None], statistics)[-1]
        looked.append(looked_at(weights, encoder, "mean").cpu())
    features = trained.features(images).cpu()
    among = bank or GivenImages(images, names, features)
    itself = bank is None
    return Prediction(
        images,
        list(names),
        reconstruct(trained, images, seed) if trained.model else None,
        torch.cat(looked),
        nearest(features, among, NEIGHBOURS, itself) if len(among.features) > itself else [],
        trained.likeliest(features) if trained.classes else [],
    )
