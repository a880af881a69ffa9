"""A recipe: every setting of a run, typed and checked before anything starts.

Each setting has its default and its description where it is declared, in the sections of a recipe, and nowhere else;
DeepSpeed's own configuration is made from it (train/deepspeed_config.py). load_recipe.py reads settings from files and
overrides, and descriptions.py reads the descriptions.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import model_validator

from pipeline.augmentation import Augment, check_size
from pipeline.data.settings import Data
from pipeline.load_recipe import AnyRecipe as AnyRecipe
from pipeline.load_recipe import load as load
from pipeline.masks.settings import MaskSettings
from pipeline.optimizers import OPTIMIZERS
from pipeline.recipe_files import RECIPES as RECIPES
from pipeline.sections import Engine, Model, Optim, PretrainRun, Run
from pipeline.settings import ConfigError as ConfigError
from pipeline.settings import Free, Section
from pipeline.targets.hog.scales import HogScales
from pipeline.targets.registry import checked
from pipeline.targets.settings import TargetSettings
from shards.secrets import masked_values


class TrainingRecipe(Section):
    """The settings of all runs. `Recipe` is for pre-training, `finetune.config.FinetuneRecipe` for fine-tuning."""

    folder: ClassVar[Path]  # folder of the recipes that have a name

    run: Free[Run]
    data: Data
    model: Model = Model()
    optim: Optim
    engine: Free[Engine] = Engine()

    @model_validator(mode="after")
    def _optimizes(self) -> Self:
        if OPTIMIZERS[self.optim.name].whole and self.engine.zero_stage:
            raise ValueError(
                f"optim.name={self.optim.name} needs whole weights, which engine.zero_stage="
                f"{self.engine.zero_stage} partitions: set engine.zero_stage=0, or choose another optimizer"
            )
        return self

    def plain(self) -> dict[str, Any]:
        """Return all settings as plain values that may be written and shown, with secrets masked."""
        values: dict[str, Any] = masked_values(self.model_dump(mode="json"))
        return values

    @property
    def masks(self) -> int:
        """The number of masks of each crop or clip in a step."""
        return 1

    @property
    def views(self) -> int:
        """The number of model inputs per sample: its crops or clips, each under all of its masks."""
        return self.data.repeats * self.masks

    @property
    def inputs(self) -> str:
        """The word for what a step counts: `images`, `clips`, or `views` where each has several masks."""
        return self.data.inputs if self.masks == 1 else "views"

    def micro_batch(self, world_size: int) -> int:
        """Return the inputs that a rank computes at once: `engine.micro_batch` or, to divide its share, fewer.

        It is a multiple of `views` and at least that, so that a sample is read for one micro-batch only.

        Raises:
            ConfigError: the batch cannot be divided evenly.
        """
        share, rest = divmod(self.optim.batch_size, world_size)
        if rest:
            raise ConfigError(
                f"optim.batch_size={self.optim.batch_size} cannot be divided evenly among {world_size} ranks"
            )
        views = self.views
        if share % views:
            repeats = {"data.repeats": self.data.repeats, "mask.repeats": self.masks}
            said = " x ".join(f"{name}={count}" for name, count in repeats.items() if count > 1)
            raise ConfigError(
                f"optim.batch_size={self.optim.batch_size} on {world_size} ranks is not a multiple of {said} on each"
            )
        most = max(views, min(share, self.engine.micro_batch or share) // views * views)
        return next(inputs for inputs in range(most, 0, -views) if share % inputs == 0)


class Recipe(TrainingRecipe):
    """A whole pre-training run."""

    folder: ClassVar[Path] = RECIPES

    run: Free[PretrainRun]
    augment: Augment = Augment()
    mask: MaskSettings = MaskSettings()
    target: Free[TargetSettings] = TargetSettings()  # has its own identity, including its weights

    @model_validator(mode="after")
    def _has_a_target(self) -> Self:
        target = checked(self.target)
        if self.model.decoder == "local" and not issubclass(target, HogScales):
            raise ValueError("model.decoder=local predicts patches at four scales: set target.kind=hog_scales")
        return self

    @model_validator(mode="after")
    def _can_be_blurred(self) -> Self:
        check_size(self.augment, self.data.size)
        return self

    @property
    def masks(self) -> int:
        """See `TrainingRecipe.masks`."""
        return self.mask.repeats


# The last overrides of a recipe whose data sets are not read; of a mixture with videos, all inputs then are clips
NO_DATA = ("data.mixture=null", "data.validation_images=null", "data.shards=not read here")


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe of pre-training; see `load`."""
    return load(Recipe, recipe, overrides)
