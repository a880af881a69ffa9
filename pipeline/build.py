"""From a recipe to its model."""

from model.convert import fill
from model.maskfeat import MaskFeat, build_encoder
from model.weights import WeightsError, read, weights_file
from pipeline.config import ConfigError, Recipe
from pipeline.targets.hog import target_width
from pipeline.targets.masking import masked_patches
from shards.files import sha256_of


def build_model(recipe: Recipe) -> MaskFeat:
    """The untrained model of a recipe. Raises ConfigError for one that cannot be."""
    try:
        encoder = build_encoder(recipe.model.name, recipe.data.image_size, **recipe.model.options)
        model = MaskFeat(encoder, target_width(encoder.patch_embed.patch_size[0]), recipe.model.position_init)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"model: {error}") from error
    rows, columns = model.grid
    if (rows * model.patch, columns * model.patch) != (recipe.data.image_size,) * 2:
        raise ConfigError(
            f"data.image_size={recipe.data.image_size} is no multiple of the {model.patch}-pixel patch of "
            f"{recipe.model.name}"
        )
    if not 0 < masked_patches(model.grid, recipe.mask.ratio) < rows * columns:
        raise ConfigError(f"mask.ratio={recipe.mask.ratio:g} leaves nothing to predict of a {rows}x{columns} grid")
    return model


def start_from_init(model: MaskFeat, recipe: Recipe) -> None:
    """Give a recipe's untrained model the weights of `model.init`, if there are any. Raises ConfigError."""
    if recipe.model.init is None:
        return
    try:
        fill(model, read(recipe.model.init))
    except WeightsError as error:
        raise ConfigError(f"model.init: {error} (model.name and model.options must be those of the weights)") from error


def init_identity(recipe: Recipe) -> str | None:
    """SHA-256 of the file that `model.init` names, which may be moved but not replaced. Raises ConfigError."""
    if recipe.model.init is None:
        return None
    try:
        return sha256_of(weights_file(recipe.model.init))
    except (WeightsError, OSError) as error:
        raise ConfigError(f"model.init: {error}") from error
