"""From a recipe to its model and what that has to predict."""

import json
import os
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from model.classifier import Classifier
from model.convert import fill
from model.maskfeat import Encoder, MaskFeat, build_encoder
from model.weights import Normalisation, WeightsError, read, weights_file
from pipeline.config import ConfigError, Recipe, TrainingRecipe
from pipeline.recipes import reason, shown
from pipeline.targets.features import Features, TeacherError, load_teacher, teacher_width
from pipeline.targets.hog import target_width as hog_width
from pipeline.targets.masking import masked_patches
from pipeline.targets.objective import MEAN, STD, Hog, Objective, Target
from pipeline.targets.pixels import Pixels, pixel_width
from shards.files import sha256_of

Network = TypeVar("Network", MaskFeat, Classifier)


def build_model(recipe: Recipe, width: int | None = None) -> MaskFeat:
    """The untrained model of a recipe. Raises ConfigError for one that cannot be.

    Args:
        width: numbers that it predicts for a patch, where they are known without a teacher; None: see the recipe.
    """

    def make() -> MaskFeat:
        encoder = build_encoder(recipe.model.name, recipe.data.image_size, **recipe.model.options)
        numbers = width or target_width(recipe, encoder.patch_embed.patch_size[0])
        return MaskFeat(encoder, numbers, recipe.model.position_init)

    def predicts(model: MaskFeat, images: Tensor) -> bool:
        mask = torch.zeros(len(images), *model.grid, dtype=torch.bool)
        masked = mask.numel() // 2
        return tuple(model(images, mask, masked).shape) == (masked, model.head.out_features)

    model = tried(recipe, make, predicts)
    rows, columns = model.grid
    if not 0 < masked_patches(model.grid, recipe.mask.ratio) < rows * columns:
        raise ConfigError(f"mask.ratio={recipe.mask.ratio:g} leaves nothing to predict of a {rows}x{columns} grid")
    return model


def tried(recipe: TrainingRecipe, make: Callable[[], Network], works: Callable[[Network, Tensor], bool]) -> Network:
    """A model that computes as a recipe says, after one like it was tried where numbers take no memory or time.

    Args:
        make: the model.
        works: whether it makes of images (B, 3, H, W), on torch's meta device, what it should.

    Raises:
        ConfigError: it cannot be made, takes more memory than there is, or does not work.
    """
    size = recipe.data.image_size
    options: list[str] = [f"model.options.{key}={json.dumps(value)}" for key, value in recipe.model.options.items()]
    what = ", ".join((f"model.name={shown(recipe.model.name)}", *options, f"data.image_size={size}"))
    try:
        with torch.device("meta"), torch.no_grad():
            trial: Network = make()
            adapt(trial.encoder, recipe)
            trial.encoder.set_grad_checkpointing(False)
            sound = works(trial.train(), torch.zeros(2, 3, size, size))
    except (ConfigError, TeacherError) as error:
        raise ConfigError(str(error)) from error
    except Exception as error:  # whatever timm and torch say of options that do not fit each other
        raise ConfigError(f"{what}: {reason(error)}") from error
    if not sound:
        raise ConfigError(
            f"{what}: the model does not keep all patches of an image: choose one like vit_base_patch16_224"
        )
    needed = sum(tensor.nbytes for tensor in (*trial.parameters(), *trial.buffers()))
    if torch.get_default_device().type != "meta" and needed > (memory := _memory()):
        raise ConfigError(f"{what}: the weights take {needed / 1e9:.0f} GB, but this machine has {memory / 1e9:.0f}")
    model = make()
    adapt(model.encoder, recipe)
    return model


def _memory() -> int:
    """Bytes of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def adapt(encoder: Encoder, recipe: TrainingRecipe) -> None:
    """Let an encoder compute as a recipe says. Raises ConfigError where its patches do not fill the recipe's images."""
    encoder.set_grad_checkpointing(recipe.engine.activation_checkpointing)
    (rows, columns), patch = encoder.patch_embed.grid_size, encoder.patch_embed.patch_size[0]
    if (rows * patch, columns * patch) != (recipe.data.image_size,) * 2:
        raise ConfigError(
            f"data.image_size={recipe.data.image_size} is not a multiple of the {patch}-pixel patch of "
            f"{recipe.model.name}"
        )


def target_width(recipe: Recipe, patch: int) -> int:
    """Numbers that describe a patch. Raises ValueError for one that cannot be described."""
    if recipe.target.teacher:
        return teacher_width(recipe.target.teacher)
    return pixel_width(patch) if recipe.target.kind == "pixels" else hog_width(patch)


def build_objective(recipe: Recipe, model: MaskFeat, dtype: torch.dtype, device: torch.device) -> Objective:
    """What a recipe's model has to do.

    Args:
        dtype: that the model, and a teacher, compute in.
        device: of the images, and a teacher.

    Raises:
        ConfigError: the teacher cannot be used.
    """
    settings, compiled = recipe.target, recipe.engine.compile
    target: Target
    if settings.teacher:
        try:
            teacher = load_teacher(settings.teacher, settings.teacher_weights)
            target = Features(teacher, model.grid, settings.loss, dtype, device, compile=compiled == "all")
        except TeacherError as error:
            raise ConfigError(str(error)) from error
    elif settings.kind == "pixels":
        target = Pixels(model.patch)
    else:
        target = Hog(model.patch, compiled != "none")
    return Objective(model.grid, model.patch, recipe.mask.ratio, dtype, compiled != "none", target)


def compile_forward(model: nn.Module, mode: str | None = None) -> None:
    """Let torch compile what a model computes, as one graph; a break in it is an error, not a slow step.

    Not `model.compile`, which takes in the hooks that DeepSpeed hangs on a model, and breaks at each.

    Args:
        mode: of `torch.compile`; None: its default.
    """
    model.forward = torch.compile(model.forward, dynamic=False, fullgraph=True, mode=mode)


def start_from_init(model: MaskFeat | Classifier, recipe: TrainingRecipe) -> str | None:
    """Give a recipe's untrained model the weights of `model.init`, if there are any. Raises ConfigError.

    Returns:
        What of them was not carried over as it is, for the operator; None if all was.
    """
    if recipe.model.init is None:
        return None
    try:
        weights = read(recipe.model.init)
        notes = fill(model, weights, Normalisation(MEAN, STD))
    except WeightsError as error:
        raise ConfigError(f"model.init: {error} (model.name and model.options must be those of the weights)") from error
    return f"of {weights.file}: {'; '.join(notes)}" if notes else None


def init_identity(recipe: TrainingRecipe) -> str | None:
    """SHA-256 of the file that `model.init` names, which may be moved but not replaced. Raises ConfigError."""
    if recipe.model.init is None:
        return None
    try:
        if (recipe.model.init / "checkpoints").exists():
            raise ConfigError(
                f"model.init={recipe.model.init} is a run: `python scripts/export.py {recipe.model.init} OUT` writes "
                "its weights, set model.init=OUT"
            )
        return sha256_of(weights_file(recipe.model.init))
    except (WeightsError, OSError) as error:
        raise ConfigError(f"model.init: {reason(error)}") from error
