"""Fit other projects' tensors to a model: another grid, clips instead of images, another normalisation."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Tensor
from torch.nn import functional as F

from model.classifier import Classifier
from model.encoders.tubelet import TUBELET
from model.maskfeat import MaskFeat
from model.weights import Normalisation, Weights, WeightsError

_TO_CLASS_TOKEN = 3  # the last rows of BEiT's relative position biases: from it, to it, and to itself
_EMBEDDINGS = ("patch_embed.proj", "conv_proj")  # names of patch embeddings
_OF_IMAGES, _OF_CLIPS = "encoder.pos_embed", ("encoder.pos_embed_class", "encoder.pos_embed_spatial")


def inflated(weights: Weights, model: MaskFeat | Classifier) -> tuple[Weights, str | None]:
    """Convert a plain transformer's image weights to those of a tubelet ViT. Return them and a note.

    Each frame of a tubelet is embedded with half the image's weights, so that a static clip is embedded as its image.
    Positions in the frame are those of the image; positions of frames are missing.
    """
    state, key = model.state_dict(), weights.layout.key
    embedding = f"encoder.{_EMBEDDINGS[0]}.weight"
    if _OF_CLIPS[1] not in state or weights.of_clips or not weights.has(embedding):
        return weights, None
    positions, patches = weights.get(_OF_IMAGES, 3), weights.get(embedding, 4)
    tensors = {name: tensor for name, tensor in weights.tensors.items() if name != key(_OF_IMAGES)}
    tensors[key(embedding)] = patches[:, :, None].expand(-1, -1, TUBELET, -1, -1) / TUBELET
    for name, part in zip(_OF_CLIPS, (positions[:, :1], positions[:, 1:]), strict=True):
        tensors[key(name)] = part
    return replace(weights, tensors=tensors), f"{key(embedding)} and positions made of those of images"


def resampled(weights: Weights, name: str, shape: torch.Size, model: MaskFeat | Classifier) -> Tensor | None:
    """Fit the positions called `name` to the model's grid and `shape`. Return None if nothing has to change.

    Embeddings of patches are resampled bicubically, BEiT's relative biases as in its own code but linearly, and so are
    tables of relative positions and embeddings of frames. The old grid is that of the weights' image size or, where
    this is unknown, a square.
    """
    if not weights.has(name):
        return None
    grid = model.view.token_layout.rows, model.view.token_layout.columns
    if name in (_OF_IMAGES, _OF_CLIPS[1]):
        embeddings = weights.get(name, 3)
        with_prefix = name == _OF_IMAGES and not getattr(model.encoder, "no_embed_class", False)
        prefix = model.view.prefix if with_prefix else 0
        old = _old_grid(weights, lambda rows, columns: rows * columns, embeddings.shape[1] - prefix)
        if old not in (None, grid):
            return cast(Tensor, resample_abs_pos_embed(embeddings.float(), [*grid], [*old], num_prefix_tokens=prefix))
    elif name.endswith(".relative_position_bias_table"):
        biases = weights.get(name, 2)
        of_patches = len(biases) - _TO_CLASS_TOKEN
        old = _old_grid(weights, lambda rows, columns: (2 * rows - 1) * (2 * columns - 1), of_patches)
        if old not in (None, grid, (1, 1)) and biases.shape[1] == shape[1]:  # a single bias has no neighbours
            return cast(Tensor, resize_rel_pos_bias_table(biases.float(), grid, shape, old))
    elif weights.tensors[weights.layout.key(name)].shape == shape:
        return None
    elif name == "encoder.pos_embed_temporal":
        return _linear(weights.get(name, 3)[0], shape[1])[None]
    elif ".attn.rel_pos_" in name:
        return _linear(weights.get(name, 2), shape[0])
    return None


def _old_grid(weights: Weights, count: Callable[[int, int], int], positions: int) -> tuple[int, int] | None:
    """Return rows and columns of the grid that has this many positions; None if there is none.

    Args:
        weights: the weights.
        count: number of positions of a grid.
        positions: number of positions in the weights.
    """
    patch = weights.tensors.get(weights.layout.key(f"encoder.{_EMBEDDINGS[0]}.weight"))
    if weights.image_size is not None and patch is not None and patch.ndim > 3 and patch.numel():
        rows, columns = (side // of for side, of in zip(weights.image_size, patch.shape[-2:], strict=True))
        if min(rows, columns) > 0 and count(rows, columns) == positions:
            return rows, columns
    side = next(side for side in itertools.count(1) if count(side, side) >= positions)
    return (side, side) if count(side, side) == positions else None


def renormalised(weights: Weights, normalisation: Normalisation | None) -> tuple[dict[str, Tensor], str | None]:
    """Fold another input normalisation into the patch embedding. Return its new tensors and a note, if any.

    Both normalisations are affine in each channel, and so is a patch embedding: (x * std + mean - theirs.mean) /
    theirs.std is folded into its weight and bias.

    Raises:
        WeightsError: the embedding does not have a bias, or is that of an MViT, which pads its inputs.
    """
    theirs = weights.normalisation
    if normalisation in (None, theirs):
        return {}, None
    if theirs is None:
        return {}, "assumed to be trained on inputs normalised as here, since no config.json beside it says otherwise"
    if weights.has(f"encoder.{_EMBEDDINGS[1]}.weight"):
        raise WeightsError(
            f"{weights.file}: an MViT cannot be converted to another normalisation: set model.mean="
            f"{list(theirs.mean)} and model.std={list(theirs.std)}"
        )
    names = [weights.layout.key(f"encoder.{_EMBEDDINGS[0]}.{kind}") for kind in ("weight", "bias")]
    if names[1] not in weights.tensors:
        raise WeightsError(f"{weights.file}: without {names[1]} it cannot be converted to another normalisation")
    weight, bias = weights.tensors[names[0]].double(), weights.get(f"encoder.{_EMBEDDINGS[0]}.bias", 1).double()
    mean, std = torch.tensor([[theirs.mean, theirs.std], [normalisation.mean, normalisation.std]]).double().unbind(1)
    scale, shift = std[1] / std[0], (mean[1] - mean[0]) / std[0]
    rewritten = {
        names[0]: (weight * scale.view(-1, *[1] * (weight.ndim - 2))).float(),
        names[1]: (bias + (weight.flatten(2).sum(2) * shift).sum(1)).float(),
    }
    return rewritten, f"patch_embed rewritten from images of mean {theirs.mean} and deviation {theirs.std}"


def _linear(table: Tensor, length: int) -> Tensor:
    """Interpolate (n, width) to (length, width) linearly, as torchvision's MViT does in its forward pass."""
    return F.interpolate(table.float().T[None], size=length, mode="linear")[0].T
