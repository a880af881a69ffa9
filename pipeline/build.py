"""From a recipe to its model."""

from model.maskfeat import MaskFeat, build_encoder
from pipeline.config import ConfigError, Recipe
from pipeline.targets.hog import target_width


def build_model(recipe: Recipe) -> MaskFeat:
    """The untrained model of a recipe. Raises ConfigError for one that cannot be."""
    try:
        encoder = build_encoder(recipe.model.name, recipe.data.image_size, **recipe.model.options)
        width = target_width(encoder.patch_embed.patch_size[0])
        return MaskFeat(encoder, width, recipe.model.position_init)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"model: {error}") from error
