"""Build the model and the training objective from a recipe."""

import json
import os
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from model.classifier import Classifier
from model.convert import fill
from model.encoders.encoder import Encoder
from model.encoders.registry import build_network, encoder_of
from model.layout import make_mask
from model.maskfeat import MaskFeat
from model.weights import Normalisation, WeightsError, read, weights_file
from pipeline.config import Recipe, TrainingRecipe
from pipeline.examples import ExampleMaker
from pipeline.masks.masker import Masker, masker_for, of_single_frames
from pipeline.recipe_files import reason, shown
from pipeline.settings import ConfigError
from pipeline.targets.registry import build_target, output_width
from pipeline.targets.target import Computing, Predictions, TargetError
from shards.files import sha256_of

Network = TypeVar("Network", MaskFeat, Classifier)

_PREDICTORS = ("head.weight", "decoder.head.weight")  # the latter of a light decoder


def build_model(recipe: Recipe, width: int | None = None) -> MaskFeat:
    """Build the untrained model of a recipe. Raises ConfigError where that is not possible.

    Args:
        width: predicted values per patch, where known without a teacher; None: see the recipe.
    """

    def make() -> MaskFeat:
        encoder = network_of(recipe)
        predictions = predictions_of(encoder_of(encoder))
        if any(side % predictions.patch[1] for side in recipe.data.size):
            raise _not_a_multiple(recipe, predictions.patch[1])
        numbers = width or output_width(recipe.target, predictions)
        of = recipe.model
        return MaskFeat(encoder, numbers, of.position_init, of.decoder, of.decoder_width)

    def predicts(model: MaskFeat, inputs: Tensor) -> bool:
        masked = build_masker(recipe, model.view).masked * len(inputs)
        cells = torch.zeros(len(inputs), *model.view.mask_layout.shape, dtype=torch.bool)
        predictions = model(inputs, make_mask(cells, model.view.prediction_layout, masked))
        return tuple(predictions.shape) == (masked, model.target_width)

    return tried(recipe, make, predicts)


def predicted_width(weights: Mapping[str, Tensor]) -> int | None:
    """Return how many values pre-training weights predict per patch; None where only their recipe says so."""
    return next((len(weights[name]) for name in _PREDICTORS if name in weights), None)


def network_of(recipe: TrainingRecipe, classes: int = 0) -> nn.Module:
    """Build the network of a recipe, with a head for `classes` classes. Raises ValueError if that is impossible."""
    data = recipe.data
    return build_network(recipe.model.name, data.image_size, data.frames, classes, **recipe.model.options)


def predictions_of(encoder: Encoder) -> Predictions:
    """Return the geometry of an encoder's predictions, for its target."""
    return Predictions(encoder.prediction_layout, encoder.prediction_patch)


def tried(recipe: TrainingRecipe, make: Callable[[], Network], works: Callable[[Network, Tensor], bool]) -> Network:
    """Build a model in the recipe's configuration, after a trial on the meta device, which takes no memory or time.

    Args:
        make: builds the model.
        works: returns whether the model's output for inputs on the meta device is valid.

    Raises:
        ConfigError: it cannot be built, takes more memory than there is, or does not work.
    """
    data = recipe.data
    options: list[str] = [f"model.options.{key}={json.dumps(value)}" for key, value in recipe.model.options.items()]
    what = ", ".join((f"model.name={shown(recipe.model.name)}", *options, f"data.image_size={data.size.setting}"))
    what += "" if data.frames is None else f", data.frames={data.frames}"
    try:
        with torch.device("meta"), torch.no_grad():
            trial: Network = make()
            adapt(trial.view, recipe)
            trial.view.checkpoint_blocks(False)
            sound = works(trial.train(), torch.zeros(2, *trial.view.input_shape))
    except (ConfigError, TargetError) as error:
        raise ConfigError(str(error)) from error
    except Exception as error:  # timm and torch raise anything for incompatible options
        raise ConfigError(f"{what}: {reason(error)}") from error
    if not sound:
        raise ConfigError(
            f"{what}: the model does not keep all patches of an image: choose one like vit_base_patch16_224"
        )
    needed = sum(tensor.nbytes for tensor in (*trial.parameters(), *trial.buffers()))
    if torch.get_default_device().type != "meta" and needed > (memory := _memory()):
        raise ConfigError(f"{what}: the weights take {needed / 1e9:.0f} GB, but this machine has {memory / 1e9:.0f}")
    model = make()
    adapt(model.view, recipe)
    return model


def _memory() -> int:
    """Return the memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def adapt(encoder: Encoder, recipe: TrainingRecipe) -> None:
    """Configure an encoder as in a recipe. Raises ConfigError where its patches do not fill the recipe's images."""
    encoder.checkpoint_blocks(recipe.engine.activation_checkpointing)
    if encoder.input_shape[-2:] != recipe.data.size:
        raise _not_a_multiple(recipe, encoder.prediction_patch[1])


def _not_a_multiple(recipe: TrainingRecipe, patch: int) -> ConfigError:
    size = recipe.data.size.setting
    return ConfigError(f"data.image_size={size} is not a multiple of the {patch}-pixel patch of {recipe.model.name}")


def build_examples(
    recipe: Recipe, model: MaskFeat, dtype: torch.dtype, device: torch.device, single_frames: bool = False
) -> ExampleMaker:
    """Build the maker of a recipe's examples from decoded pixels.

    Args:
        recipe: the recipe of the run.
        model: the model, whose view of the inputs decides masks and targets.
        dtype: precision of the model and of a teacher.
        device: device of the inputs and of a teacher.
        single_frames: whether there are images besides clips.

    Raises:
        ConfigError: a file for the target cannot be used, or the model or the masks are for clips only.
    """
    compiled = recipe.engine.compile
    statistics = recipe.model.statistics
    computing = Computing(dtype, device, compiled != "none", compiled == "all", statistics)
    try:
        target = build_target(recipe.target, predictions_of(model.view), computing)
    except TargetError as error:
        raise ConfigError(str(error)) from error

    def made(view: Encoder, of_images: ExampleMaker | None = None) -> ExampleMaker:
        masker = build_masker(recipe, view, beside_clips=view is not model.view)
        fuse = compiled != "none"
        return ExampleMaker(predictions_of(view), masker, target, statistics, dtype, fuse, of_images)

    if not single_frames or recipe.data.frames == 1:
        return made(model.view)
    if model.view.single_frames is None:
        raise ConfigError(f"data.mixture has images, and {recipe.model.name} takes clips only: leave the images out")
    return made(model.view, made(model.view.single_frames))


def build_masker(recipe: Recipe, view: Encoder, beside_clips: bool = False) -> Masker:
    """Build a recipe's masker.

    Args:
        recipe: the recipe of the run.
        view: the view of the model, which has the grids.
        beside_clips: whether the view is for single frames besides clips.

    Raises:
        ConfigError: the kind or the ratio does not fit the model.
    """
    try:
        settings = of_single_frames(recipe.mask) if beside_clips else recipe.mask
        return masker_for(settings, view.mask_layout, view.prediction_layout, recipe.engine.compile != "none")
    except ValueError as error:
        raise ConfigError(str(error)) from None


def load_trained(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load the weights of a checkpoint, which omits untrained parameters, into a model.

    Raises:
        RuntimeError: the weights do not match the model.
    """
    fixed = {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}
    model.load_state_dict(fixed | weights)


def compile_forward(model: nn.Module, mode: str | None = None) -> None:
    """Compile a model's forward pass as one graph; a graph break is an error, not a slow step.

    Unlike `model.compile`, this excludes the hooks that DeepSpeed adds to a model, each of which is a graph break.

    Args:
        mode: mode of `torch.compile`; None: its default.
    """
    model.forward = torch.compile(model.forward, dynamic=False, fullgraph=True, mode=mode)


def start_from_init(model: MaskFeat | Classifier, recipe: TrainingRecipe) -> str | None:
    """Load the weights of `model.init`, if set, into a recipe's untrained model. Raises ConfigError.

    Returns:
        A note for the operator on weights that were changed or not copied; None if all were copied.
    """
    if recipe.model.init is None:
        return None
    try:
        weights = read(recipe.model.init)
        notes = fill(model, weights, Normalisation(*recipe.model.statistics))
    except WeightsError as error:
        raise ConfigError(f"model.init: {error} (model.name and model.options must be those of the weights)") from error
    return f"of {weights.file}: {'; '.join(notes)}" if notes else None


def init_identity(recipe: TrainingRecipe) -> str | None:
    """Return the SHA-256 of the file of `model.init`, which may be moved but not replaced. Raises ConfigError."""
    if recipe.model.init is None:
        return None
    try:
        if (recipe.model.init / "checkpoints").exists():
            raise ConfigError(
                f"model.init={recipe.model.init} is a run: `maskfeat export {recipe.model.init} OUT` writes "
                "its weights, set model.init=OUT"
            )
        return sha256_of(weights_file(recipe.model.init))
    except (WeightsError, OSError) as error:
        raise ConfigError(f"model.init: {reason(error)}") from error
