"""The settings of fine-tuning that pre-training does not have, or has with other defaults."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.config import RECIPES, Engine, Optim, Run, TrainingRecipe
from pipeline.data.settings import Data
from pipeline.settings import Count, Free, Place, Range, Rate, Section, Share

Strength = Annotated[float, Field(ge=0, le=1000)]


class FinetuneRun(Run):
    """Settings of a run's folder, reports and saves."""

    kind: Literal["finetune"] = "finetune"  # type: ignore[assignment]


class LabelledData(Data):
    """Data with labels, which both data sets need."""

    labelled: ClassVar[bool] = True

    mode: Literal["exact"] = "exact"
    validation: Free[Place]
    validation_samples: Free[Count | None] = None
    validation_crop: float = Field(224 / 256, gt=0, le=1)  # share of the largest centred crop
    crop_scale: Range = (0.08, 1.0)


class Augment(Section):
    """The augmentation of images and labels, besides crop and flip."""

    randaugment: float | None = Field(9.0, ge=0, le=10)  # magnitude of timm's rand-m9-mstd0.5-inc1; None: off
    erasing: float = Field(0.25, ge=0, le=1)  # probability that a rectangle becomes noise
    mixup: Strength = 0.8  # alpha of the Beta distribution of the shares of two mixed images; 0: off
    cutmix: Strength = 1.0  # likewise for CutMix, which pastes a rectangle
    cutmix_share: float = Field(0.5, ge=0, le=1)  # share of the batches, if mixup is on, too
    smoothing: float = Field(0.1, ge=0, lt=1)  # share of a label that is spread over all classes


class FinetuneOptim(Optim):
    """An optimizer whose learning rate falls from the last layer to the first."""

    lr: Rate = Field(1e-3, gt=0)  # per 256 images in a batch, for the last layer
    warmup_epochs: float = Field(20, ge=0)
    clip: float | None = Field(None, gt=0, le=10**6)
    layer_decay: float = Field(0.65, gt=0, le=1)  # factor of the learning rate from layer to layer
    average: Share | None = None  # decay of a moving average (EMA) of the weights, which is also validated


class FinetuneEngine(Engine):
    """The computation of a step."""

    compile: Literal["none", "all"] = "all"  # torch.compile of the model


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
