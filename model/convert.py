"""Load the weights of other projects: MaskFeat checkpoints of SlowFast and mmpretrain, and initial encoder weights."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.models.video import MViT

from model.classifier import Classifier
from model.encoders.mvit import SIZES
from model.encoders.registry import build_network, encoder_of
from model.fitting import inflated, renormalised, resampled
from model.geometry import geometry
from model.maskfeat import MaskFeat
from model.weights import (
    MMPRETRAIN,
    MMPRETRAIN_VIDEO,
    SLOWFAST,
    TIMM,
    Layout,
    Normalisation,
    Weights,
    WeightsError,
    read,
)

_CLASSIFIERS = ("encoder.fc_norm.", "encoder.head.")  # parts of a classifier only, by the names of other encoders ...
_MASKFEATS = ("encoder.norm.", "mask_token", "head.", "decoder.")  # ... and parts of a MaskFeat only


def load_slowfast(path: Path | str) -> MaskFeat:
    """Load a SlowFast checkpoint (`model_state`) of MaskFeat on images or clips, of any width and depth.

    From a fine-tuned checkpoint only the encoder is loaded; `classifier` loads all of it. Its LayerNorm was trained
    after the pooling and is not part of a MaskFeat, so the encoder's norm, the mask token and the head are untrained.

    Raises:
        WeightsError: the file is missing, damaged or of another kind, or a key is missing, unknown or misshaped.
    """
    return _load(path, SLOWFAST)


def load_mmpretrain(path: Path | str) -> MaskFeat:
    """Load a checkpoint of mmpretrain or mmselfsup (`state_dict`); see `load_slowfast`."""
    return _load(path, MMPRETRAIN)


def maskfeat(weights: Weights) -> MaskFeat:
    """Build the MaskFeat of a SlowFast or mmpretrain checkpoint; for a fine-tuned one see `load_slowfast`.

    Raises:
        WeightsError: a key is missing, unknown or of another shape.
    """
    name, image_size, frames, options = geometry(weights)
    encoder = build_network(name, image_size, frames, **options)
    model = MaskFeat(encoder) if weights.fine_tuned else MaskFeat(encoder, len(weights.get("head.weight", 2)))
    fill(model, weights)
    return model


def classifier(weights: Weights) -> Any:
    """Build the network of a fine-tuned checkpoint: mean of the patch tokens, LayerNorm, head.

    Raises:
        WeightsError: a key is missing, unknown or of another shape, or the head uses the class token.
    """
    if weights.layout is MMPRETRAIN_VIDEO:
        raise WeightsError(
            f"{weights.file}: the head of mmaction2's classifiers uses the class token: only their encoder can be "
            "loaded, by model.init"
        )
    name, image_size, frames, options = geometry(weights)
    head = "encoder.head.1.weight" if name in SIZES else "encoder.head.weight"
    network = build_network(name, image_size, frames, len(weights.get(head, 2)), **options)
    parts = encoder_of(network).classifier_parts
    keys = {}
    for name in network.state_dict():
        ours = f"fc_{name}" if name.startswith("norm.") and "norm." in parts else name  # see `model.weights.Layout`
        keys[name] = weights.layout.key(f"encoder.{ours}")
    _copy(weights, network, keys, weights.layout.ignored)
    return network


def fill(
    model: MaskFeat | Classifier,
    weights: Weights,
    normalisation: Normalisation | None = None,
    encoder_only: bool = False,
) -> list[str]:
    """Overwrite a model's initial weights with other weights.

    Parts that an encoder or a classifier cannot provide are not changed: the mask token, the prediction head and, where
    a LayerNorm was trained after the pooling, the encoder's norm. A classifier's LayerNorm and head, and positions that
    are not trained, are never changed. Positions of another grid are resampled by timm's functions: embeddings
    bicubically, BEiT's relative biases as in its own code but linearly. The patch embedding is rewritten if `weights`
    were trained on images of another known normalisation.

    Args:
        normalisation: that of the model's inputs; None: that of the weights' training.
        encoder_only: whether nothing but the encoder is used; the notes then leave out other parts of the model.

    Returns:
        Notes on the parts that were changed or not copied, a phrase each.

    Raises:
        WeightsError: a key is missing, unknown or of another shape.
    """
    weights, inflation = inflated(weights, model)
    key, ignored = weights.layout.key, weights.layout.ignored
    untouched: tuple[str, ...] = ()
    if isinstance(model, Classifier):
        untouched += tuple(f"encoder.{part}" for part in model.view.classifier_parts)
        ignored += tuple(key(name) for name in (*_CLASSIFIERS, *_MASKFEATS))
    elif weights.fine_tuned or weights.layout is TIMM:
        untouched += ("mask_token", "head.", "decoder.")
        ignored += tuple(key(name) for name in _CLASSIFIERS)
        if weights.has("encoder.fc_norm.weight"):
            untouched += ("encoder.norm.",)
        elif weights.fine_tuned and isinstance(model.encoder, MViT):  # under torchvision's names
            untouched += ("encoder.norm.",)
            ignored += (key("encoder.norm."),)
    fixed = tuple(name for name, parameter in model.named_parameters() if not parameter.requires_grad)
    untouched += fixed
    ignored += tuple(key(name) for name in fixed)
    if inflation:
        untouched += ("encoder.pos_embed_temporal",)
    state = model.state_dict()
    keys = {name: key(name) for name in state if not name.startswith(untouched)}
    others = {}
    for name in keys:
        if (positions := resampled(weights, name, state[name].shape, model)) is not None:
            others[key(name)] = positions
    rewritten, note = renormalised(weights, normalisation)
    _copy(replace(weights, tensors=weights.tensors | others | rewritten), model, keys, ignored)

    anew = [name for name in state if name not in keys and (name.startswith("encoder.") or not encoder_only)]
    passed_over = [key for key in weights.tensors if key not in keys.values()]
    notes = [f"{_some(anew)} start anew"] if anew else []
    notes += [f"{_some(passed_over)} passed over"] if passed_over else []
    notes += [f"{_some(list(others))} resampled to {model.view.token_layout} patches"] if others else []
    return notes + [said for said in (inflation, note) if said]


def restore(model: MaskFeat, weights: Weights) -> None:
    """Overwrite all of a model's weights with those of a whole model.

    Raises:
        WeightsError: a key is missing, unknown or of another shape, or its numbers are not finite.
    """
    _copy(weights, model, {name: weights.layout.key(name) for name in model.state_dict()}, ())


def _load(path: Path | str, layout: Layout) -> MaskFeat:
    weights = read(path)
    if weights.layout is not layout and not (layout is MMPRETRAIN and weights.layout is MMPRETRAIN_VIDEO):
        raise WeightsError(f"{path} is not a checkpoint of {layout.code}: its names are those of {weights.layout.code}")
    return maskfeat(weights)


def _copy(weights: Weights, module: nn.Module, keys: Mapping[str, str], ignored: tuple[str, ...]) -> None:
    """Copy the tensor `keys[name]` to every `name` of the module; fail unless these and `ignored` are all the keys."""
    state, tensors = module.state_dict(), dict(weights.tensors)
    for name, key in keys.items():  # the class token of torchvision's MViT
        if key in tensors and tensors[key].shape == (1, 1, *state[name].shape):
            tensors[key] = tensors[key].flatten()
    wanted = set(keys.values())
    missing = [key for key in keys.values() if key not in tensors]
    unknown = [key for key in tensors if key not in wanted and not key.startswith(ignored)]
    misshaped = [
        f"{key} is {tuple(tensors[key].shape)} instead of {tuple(state[name].shape)}"
        for name, key in keys.items()
        if key in tensors and tensors[key].shape != state[name].shape
    ]
    unusable = [
        f"{key} contains {fault}"
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
    """Return why training cannot start from a tensor; None if it can."""
    if not tensor.is_floating_point():
        return f"{str(tensor.dtype).removeprefix('torch.')} instead of floating-point numbers"
    return None if tensor.float().isfinite().all() else "NaN or infinity"


def _some(texts: list[str]) -> str:
    """Return the first three texts, and how many more there are."""
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")
