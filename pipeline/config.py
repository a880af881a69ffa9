"""A recipe: every setting of a run, typed and checked before anything starts.

Each setting has its default here, or for fine-tuning in finetune/config.py, and nowhere else; DeepSpeed's own
configuration is made from it (train/deepspeed_config.py). loading.py reads settings from files and overrides.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from model.decoders import DecoderKind
from model.encoders.encoder import PositionInit
from pipeline.augmentation import Augment, check_size
from pipeline.data.settings import Data
from pipeline.load_recipe import AnyRecipe as AnyRecipe
from pipeline.load_recipe import load as load
from pipeline.masks.settings import MaskSettings
from pipeline.model_options import INSTEAD, Options
from pipeline.optimizers import OPTIMIZERS
from pipeline.pixels import IMAGENET, Channels, Statistics
from pipeline.recipe_files import RECIPES as RECIPES
from pipeline.settings import ConfigError as ConfigError
from pipeline.settings import Count, Free, LocalPath, Minutes, Rate, Seconds, Section, Share, Text
from pipeline.targets.registry import checked
from pipeline.targets.settings import TargetSettings
from shards.secrets import masked_values


class Run(Section):
    """Settings of a run's folder, reports and saves. `*_every` count steps."""

    dir: LocalPath
    kind: Literal["pretrain"] = "pretrain"  # kind of run, for readers of its record
    seed: int = Field(0, ge=0, lt=2**62)
    max_steps: Count | None = None  # stop early, without changing the schedule
    log_every: Count = 20
    eval_every: Count = 1000
    save_every: Count = 1000
    save_minutes: Minutes | None = 30  # also save at the first log step this long after the last save
    keep: Count = 3  # newest checkpoints kept, and besides these ...
    keep_every: Count | None = None  # ... permanently those of every N-th step
    deadline: Seconds = 600  # seconds that any phase of a step may take before a rank gives up
    nonfinite_in_a_row: Count = 10  # consecutive steps without a finite gradient that make a run roll back, once
    boards: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)  # that show curves and pictures
    profile: int = Field(0, ge=0, le=10_000)  # profile this many steps of this attempt
    trace_samples: bool = False  # write the ids of every batch, and the frames of its clips, to samples-rank{r}.jsonl


class PretrainRun(Run):
    """Settings of a run's folder, reports and saves. `*_every` count steps."""

    probe_every: Count | None = None  # evaluate the frozen encoder by labels during training; None: do not
    probe_samples: Count = 4096  # most samples of the training and of the validation set, each


class Model(Section):
    """The encoder: a timm vision transformer."""

    name: Text = "vit_base_patch16_224"
    position_init: PositionInit = "random"
    decoder: DecoderKind | None = None  # encode visible patches only; this predicts the others. None: as in the paper
    decoder_width: int = Field(256, gt=0, le=8192)  # width of a decoder's tokens, a multiple of 32
    mean: Channels = IMAGENET.mean  # mean of the inputs, in [0, 1], by channel ...
    std: Channels = IMAGENET.std  # ... and their standard deviation
    init: LocalPath | None = None  # weights to start from; a run is bound to their SHA-256, not to this path
    options: Options = Field(
        default_factory=Options
    )  # passed to timm: embed_dim, depth, num_heads, drop_path_rate, ...

    @model_validator(mode="before")
    @classmethod
    def _has_settings_for(cls, values: Any) -> Any:
        options = values.get("options") if isinstance(values, dict) else None
        for option, setting in INSTEAD.items():
            if isinstance(options, dict) and option in options:
                raise ValueError(f"model.options.{option} has a setting of its own: set {setting} instead")
        return values

    @model_validator(mode="after")
    def _divides_by_something(self) -> Self:
        if min(self.std) <= 0:
            raise ValueError(f"model.std={list(self.std)} has to be above 0: pixels are divided by it")
        return self

    @property
    def statistics(self) -> Statistics:
        """The statistics of the model's inputs."""
        return Statistics(self.mean, self.std)


class Optim(Section):
    """An optimizer with a linear warm-up and a cosine schedule."""

    name: Text = "adamw"  # one of `OPTIMIZERS`
    epochs: float = Field(gt=0, le=10**6)
    batch_size: int = Field(gt=0, le=2**20)  # images, or views of them, per step over all ranks and accumulation
    lr: Rate = Field(2e-4, gt=0)  # per 256 images in a batch: linear scaling
    warmup_lr: Rate = 1e-6
    min_lr: Rate = 1e-6
    warmup_epochs: float = Field(30, ge=0)
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: Rate = 0.05
    clip: float | None = Field(0.02, gt=0, le=10**6)  # L2 norm of the gradient; null: no clipping

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in OPTIMIZERS:
            raise ValueError(
                f"optim.name={name[:100]} is not an optimizer that runs resume exactly with: "
                f"choose one of {', '.join(OPTIMIZERS)}"
            )
        return name

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"optim.warmup_epochs={self.warmup_epochs:g} leaves nothing of optim.epochs={self.epochs:g}"
            )
        return self


class Engine(Section):
    """The computation of a step."""

    zero_stage: int = Field(1, ge=0, le=3)
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    tf32: bool = False  # allow GPUs to multiply fp32 numbers rounded to TensorFloat-32
    micro_batch: Count | None = None  # most images that a rank computes at once; None: all of its share
    compile: Literal["none", "target", "all"] = "all"  # torch.compile: nothing, the HOG target, or the model too
    activation_checkpointing: bool = False  # recompute blocks instead of storing their activations: less memory

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        if self.zero_stage == 3 and self.compile == "all":
            raise ValueError(
                "engine.compile=all fails under engine.zero_stage=3, which partitions the weights: change one of them"
            )
        return self


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

    def micro_batch(self, world_size: int) -> int:
        """Return the images that a rank computes at once: `engine.micro_batch` or, to divide its share, fewer.

        It is a multiple of `views`, so that a sample is read for one micro-batch only.

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
        checked(self.target)
        return self

    @model_validator(mode="after")
    def _can_be_blurred(self) -> Self:
        check_size(self.augment, self.data.size)
        return self

    @property
    def masks(self) -> int:
        """See `TrainingRecipe.masks`."""
        return self.mask.repeats


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe of pre-training; see `load`."""
    return load(Recipe, recipe, overrides)
