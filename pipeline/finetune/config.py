"""The settings of fine-tuning that pre-training does not have, or has with other defaults."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.config import RECIPES, TrainingRecipe
from pipeline.data.settings import Data
from pipeline.sections import Engine, Optim, Run
from pipeline.settings import Count, Free, Place, Range, Rate, Section, Share

Strength = Annotated[float, Field(ge=0, le=1000)]


class FinetuneRun(Run):
    """The run's folder, reports and saves. Settings named `*_every` count steps."""

    kind: Literal["finetune"] = "finetune"  # type: ignore[assignment]
    """Kind of run, written down for programs that read its record. There is no need to set it."""


class LabelledData(Data):
    """Data with labels, which both data sets need."""

    labelled: ClassVar[bool] = True

    mode: Literal["exact"] = "exact"
    """A data set with a manifest: streams of tars cannot be used."""
    validation: Free[Place]
    """Folder or URL of the validation set, which fine-tuning needs."""
    validation_samples: Free[Count | None] = None
    """Use at most this many samples of `data.validation`, the first ones; null: all."""
    validation_crop: float = Field(224 / 256, gt=0, le=1)
    """Share of the largest centred crop that validation sees."""
    crop_scale: Range = (0.08, 1.0)
    """Range of the crop's share of the image's area."""


class Augment(Section):
    """The augmentation of images and labels, besides crop and flip."""

    randaugment: float | None = Field(9.0, ge=0, le=10)
    """Magnitude of timm's `rand-m9-mstd0.5-inc1`; null: off."""
    erasing: float = Field(0.25, ge=0, le=1)
    """Probability that a rectangle of an image becomes noise."""
    mixup: Strength = 0.8
    """Alpha of the Beta distribution of the share of each of two mixed images; 0: off."""
    cutmix: Strength = 1.0
    """The same for CutMix, where a rectangle of one image covers the other; 0: off."""
    cutmix_share: float = Field(0.5, ge=0, le=1)
    """Share of the micro-batches to which CutMix is applied, if Mixup is on, too."""
    smoothing: float = Field(0.1, ge=0, lt=1)
    """Share of a label that is spread evenly over all classes."""


class FinetuneOptim(Optim):
    """An optimizer whose learning rate falls from the last layer to the first."""

    lr: Rate = Field(1e-3, gt=0)
    """Peak learning rate of the last layer per 256 images of a batch: it is scaled linearly with `optim.batch_size`."""
    warmup_epochs: float = Field(20, ge=0)
    """Length of the warm-up."""
    clip: float | None = Field(None, gt=0, le=10**6)
    """Largest L2 norm of the gradient; null: no clipping."""
    layer_decay: float = Field(0.65, gt=0, le=1)
    """Factor of the learning rate from each layer to the one before; 1: the same rate everywhere."""
    average: Share | None = None
    """Decay of a moving average (EMA) of the weights, 0.9999 for instance, which is validated as `val_top1_ema` and
    so on; not at ZeRO 3. null: no average."""


class FinetuneEngine(Engine):
    """The computation of a step."""

    compile: Literal["none", "all"] = "all"
    """Parts that torch.compile compiles: `none` or `all`, the model."""


class FinetuneRecipe(TrainingRecipe):
    """A whole fine-tuning run."""

    folder: ClassVar = RECIPES / "finetune"

    run: Free[FinetuneRun]
    data: LabelledData
    augment: Augment = Augment()
    optim: FinetuneOptim
    engine: Free[FinetuneEngine] = FinetuneEngine()

    @model_validator(mode="after")
    def _has_no_decoder(self) -> Self:
        if self.model.decoder:
            raise ValueError("model.decoder predicts hidden patches, and fine-tuning has none: leave it out")
        return self

    @model_validator(mode="after")
    def _has_whole_weights(self) -> Self:
        if self.optim.average and self.engine.zero_stage == 3:
            raise ValueError(
                "optim.average needs unpartitioned weights for validation: use engine.zero_stage=2 or lower"
            )
        return self
