"""From others' weights to networks: MaskFeat checkpoints of SlowFast and mmpretrain, and any encoder to start from."""

import re
from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any, cast

import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from timm.models import VisionTransformer
from torch import Tensor, nn

from model.classifier import Classifier
from model.encoders.timm_vit import build_encoder
from model.maskfeat import MaskFeat
from model.weights import MMPRETRAIN, SLOWFAST, TIMM, Layout, Normalisation, Weights, WeightsError, read

HEAD_WIDTH = 64  # of an attention head in all published MaskFeat weights: no shape tells it

_SIZES = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large"}  # timm's, by width and depth

_CLASSIFIERS = ("encoder.fc_norm.", "encoder.head.")  # what only a classifier has ...
_MASKFEATS = ("encoder.norm.", "mask_token", "head.")  # ... and what only a MaskFeat has

_TO_CLASS_TOKEN = 3  # of BEiT's relative position biases, at the end: from it, to it, and its own


def load_slowfast(path: Path | str) -> MaskFeat:
    """A SlowFast checkpoint (`model_state`) of MaskFeat on images, of any width and depth.

    Of a fine-tuned one this is the encoder, while `classifier` is all of it: its LayerNorm was trained behind the
    pooling and is no part of a MaskFeat, so the encoder's norm, the mask token and the prediction head are untrained.

    Raises:
        WeightsError: no such file, a damaged one, one of another kind, or a missing, unknown or misshaped key.
    """
    return _load(path, SLOWFAST)


def load_mmpretrain(path: Path | str) -> MaskFeat:
    """The same for a checkpoint of mmpretrain or mmselfsup (`state_dict`)."""
    return _load(path, MMPRETRAIN)


def geometry(weights: Weights) -> tuple[str, int, dict[str, Any]]:
    """Name, image size and options for `build_encoder`, from the shapes of a SlowFast or mmpretrain checkpoint.

    Raises:
        WeightsError: a key that tells them is missing or of an impossible shape.
    """
    if weights.layout is TIMM:
        raise WeightsError(f"{weights.file} has timm's names: it needs no conversion")
    patch_embedding = weights.get("encoder.patch_embed.proj.weight", 4)
    width, patch = len(patch_embedding), patch_embedding.shape[-1]
    patches = weights.get("encoder.pos_embed", 3).shape[1] - 1
    hidden = len(weights.get("encoder.blocks.0.mlp.fc1.weight", 2))
    block = re.compile(re.escape(weights.layout.key("encoder.blocks.")) + r"(\d+)\.")
    depth = len({found[1] for key in weights.tensors if (found := block.match(key))})
    if width % HEAD_WIDTH or isqrt(patches) ** 2 != patches:
        raise WeightsError(
            f"{weights.file}: {patches} patches do not form a square, or a width of {width} is not made of attention "
            f"heads of {HEAD_WIDTH}"
        )
    image_size = isqrt(patches) * patch
    if (width, depth) in _SIZES and (patch, hidden) == (16, 4 * width):
        return f"vit_{_SIZES[width, depth]}_patch16_224", image_size, {}
    options = {"embed_dim": width, "depth": depth, "num_heads": width // HEAD_WIDTH}
    return "vit_base_patch16_224", image_size, options | {"mlp_ratio": hidden / width, "patch_size": patch}


def maskfeat(weights: Weights) -> MaskFeat:
    """The MaskFeat of a SlowFast or mmpretrain checkpoint; of a fine-tuned one see `load_slowfast`.

    Raises:
        WeightsError: a key is missing, unknown or of another shape.
    """
    name, image_size, options = geometry(weights)
    encoder = build_encoder(name, image_size, **options)
    model = MaskFeat(encoder) if weights.fine_tuned else MaskFeat(encoder, len(weights.get("head.weight", 2)))
    fill(model, weights)
    return model


def classifier(weights: Weights) -> VisionTransformer:
    """A fine-tuned checkpoint as timm's classifier: mean of the patch tokens, LayerNorm, head.

    Raises:
        WeightsError: a key is missing, unknown or of another shape.
    """
    name, image_size, options = geometry(weights)
    classes = len(weights.get("encoder.head.weight", 2))
    model = build_encoder(name, image_size, classes, **options)
    keys = {name: weights.layout.key(f"encoder.{name}") for name in model.state_dict()}
    _copy(weights, model, keys, weights.layout.ignored)
    return cast(VisionTransformer, model)


def fill(model: MaskFeat | Classifier, weights: Weights, normalisation: Normalisation | None = None) -> list[str]:
    """Overwrite a model's weights, to start from others'.

    What an encoder or a classifier cannot give stays as it is: the mask token, the prediction head and, where a
    LayerNorm was trained behind the pooling, the encoder's norm. A classifier's LayerNorm and head always stay as they
    are. Positions of another square grid are resampled by timm's functions: embeddings bicubically, BEiT's relative
    biases as in its own code but linearly. The patch embedding is rewritten if `weights` tells that it was trained on
    images normalised otherwise.

    Args:
        normalisation: of the images that the model will see; None: as in the weights' training.

    Returns:
        What was not carried over as it is, a phrase each.

    Raises:
        WeightsError: a key is missing, unknown or of another shape.
    """
    key, ignored = weights.layout.key, weights.layout.ignored
    untouched: tuple[str, ...] = ()
    if isinstance(model, Classifier):
        untouched += _CLASSIFIERS
        ignored += tuple(key(name) for name in (*_CLASSIFIERS, *_MASKFEATS))
    elif weights.fine_tuned or weights.layout is TIMM:
        untouched += ("mask_token", "head.")
        ignored += tuple(key(name) for name in _CLASSIFIERS)
        if weights.has("encoder.fc_norm.weight"):
            untouched += ("encoder.norm.",)
    state = model.state_dict()
    keys = {name: key(name) for name in state if not name.startswith(untouched)}
    resampled = {}
    for name in keys:
        if (positions := _resampled(weights, name, state[name].shape, model)) is not None:
            resampled[key(name)] = positions
    rewritten, note = _renormalised(weights, normalisation)
    _copy(replace(weights, tensors=weights.tensors | resampled | rewritten), model, keys, ignored)

    anew = [name for name in state if name not in keys]
    passed_over = [key for key in weights.tensors if key not in keys.values()]
    notes = [f"{_some(anew)} start anew"] if anew else []
    notes += [f"{_some(passed_over)} passed over"] if passed_over else []
    notes += [f"{_some(list(resampled))} resampled to {model.view.token_layout} patches"] if resampled else []
    return notes + ([note] if note else [])


def _load(path: Path | str, layout: Layout) -> MaskFeat:
    weights = read(path)
    if weights.layout is not layout:
        raise WeightsError(f"{path} is not a checkpoint of {layout.code}: its names are those of {weights.layout.code}")
    return maskfeat(weights)


def _resampled(weights: Weights, name: str, shape: torch.Size, model: MaskFeat | Classifier) -> Tensor | None:
    """The positions that we call `name`, made to fit the model's grid and `shape`, if they are of another square."""
    if not weights.has(name):
        return None
    grid = model.view.token_layout.shape
    if name == "encoder.pos_embed":
        embeddings = weights.get(name, 3)
        prefix = 0 if getattr(model.encoder, "no_embed_class", False) else model.view.prefix
        patches = embeddings.shape[1] - prefix
        if embeddings.shape[1] != shape[1] and patches > 0 and isqrt(patches) ** 2 == patches:
            return cast(Tensor, resample_abs_pos_embed(embeddings.float(), list(grid), num_prefix_tokens=prefix))
    elif name.endswith(".relative_position_bias_table"):
        biases = weights.get(name, 2)
        side = isqrt(max(0, len(biases) - _TO_CLASS_TOKEN))
        square = side > 1 and side % 2 == 1 and side**2 == len(biases) - _TO_CLASS_TOKEN
        if len(biases) != shape[0] and biases.shape[1] == shape[1] and square:
            return cast(Tensor, resize_rel_pos_bias_table(biases.float(), grid, shape))
    return None


def _renormalised(weights: Weights, normalisation: Normalisation | None) -> tuple[dict[str, Tensor], str | None]:
    """The patch embedding that does with images normalised so what `weights` does with its own, and what to say of it.

    Both normalisations are affine in each channel, and so is a patch embedding: (x * std + mean - theirs.mean) /
    theirs.std is taken into its weight and bias.
    """
    theirs = weights.normalisation
    if weights.layout is not TIMM or normalisation in (None, theirs):
        return {}, None
    if theirs is None:
        return {}, "taken to be trained on images normalised as here, since no config.json beside it says otherwise"
    name = "patch_embed.proj"
    if f"{name}.bias" not in weights.tensors:
        raise WeightsError(f"{weights.file}: without {name}.bias it cannot be made to take images normalised as here")
    weight, bias = weights.get(f"encoder.{name}.weight", 4).double(), weights.get(f"encoder.{name}.bias", 1).double()
    mean, std = torch.tensor([[theirs.mean, theirs.std], [normalisation.mean, normalisation.std]]).double().unbind(1)
    scale, shift = std[1] / std[0], (mean[1] - mean[0]) / std[0]
    rewritten = {
        f"{name}.weight": (weight * scale[:, None, None]).float(),
        f"{name}.bias": (bias + (weight.sum((2, 3)) * shift).sum(1)).float(),
    }
    return rewritten, f"patch_embed rewritten from images of mean {theirs.mean} and deviation {theirs.std}"


def _copy(weights: Weights, module: nn.Module, keys: Mapping[str, str], ignored: tuple[str, ...]) -> None:
    """Copy to every `name` of the module the tensor `keys[name]`, if there are these, `ignored` and no others."""
    state, tensors = module.state_dict(), weights.tensors
    wanted = set(keys.values())
    missing = [key for key in keys.values() if key not in tensors]
    unknown = [key for key in tensors if key not in wanted and not key.startswith(ignored)]
    misshaped = [
        f"{key} is {tuple(tensors[key].shape)} instead of {tuple(state[name].shape)}"
        for name, key in keys.items()
        if key in tensors and tensors[key].shape != state[name].shape
    ]
    unusable = [
        f"{key} holds {fault}"
        for key in dict.fromkeys(keys.values())
        if key in tensors and (fault := _fault(tensors[key]))
    ]
    problems = [f"missing {_some(missing)}"] if missing else []
    problems += [f"unknown {_some(unknown)}"] if unknown else []
    problems += [_some(misshaped)] if misshaped else []
    problems += [_some(unusable)] if unusable else []
    if problems:
        raise WeightsError(f"{weights.file}, read with the names of {weights.layout.code}: {'; '.join(problems)}")
    module.load_state_dict({name: tensors[key] for name, key in keys.items()}, strict=False)


def _fault(tensor: Tensor) -> str | None:
    """Say why no training can start from a tensor; None if one can."""
    if not tensor.is_floating_point():
        return f"{str(tensor.dtype).removeprefix('torch.')} instead of floating-point numbers"
    return None if tensor.float().isfinite().all() else "NaN or infinity"


def _some(texts: list[str]) -> str:
    """The first three, and how many more there are."""
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")
