"""Settings of a run, its model, its optimizer and the computation of a step: sections of all recipes."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from model.decoders import DecoderKind
from model.encoders.encoder import PositionInit
from pipeline.model_options import INSTEAD, Options
from pipeline.optimizers import OPTIMIZERS
from pipeline.pixels import IMAGENET, Channels, Statistics
from pipeline.settings import Count, LocalPath, Minutes, Rate, Seconds, Section, Share, Text


class Run(Section):
    """The run's folder, reports and saves. Settings named `*_every` count steps."""

    dir: LocalPath
    """The run's folder. Unless it is set, the programs take runs/RECIPE or, for fine-tuning, runs/finetune/RECIPE,
    where RECIPE is the name of the recipe's file without its folder and suffix."""
    kind: Literal["pretrain"] = "pretrain"
    """Kind of run, written down for programs that read its record. There is no need to set it."""
    seed: int = Field(0, ge=0, lt=2**62)
    """Seed of weights, order, crops and masks."""
    max_steps: Count | None = None
    """Step to end at, without changing the schedule; null: the end of the schedule."""
    log_every: Count = 20
    """Steps between log lines."""
    eval_every: Count = 1000
    """Steps between validations, each with a picture. The last step is always validated."""
    histogram_every: Count | None = None
    """Steps between histograms of every weight, and of its gradient as the optimizer averages it, on TensorBoard and
    W&B; null: no histograms."""
    save_every: Count = 1000
    """Steps between checkpoints. The last step is always saved."""
    save_minutes: Minutes | None = 30
    """Save also at the first log step that comes this many minutes after the last save began, by the clock of rank 0;
    null: never. Changes no logged line and no number."""
    keep: Count = 3
    """Newest checkpoints to keep."""
    keep_every: Count | None = None
    """Besides these, keep checkpoints at multiples of this many steps permanently; null: none."""
    deadline: Seconds = 600
    """Seconds that any phase of a step may take (the first step includes compiling). After that a rank considers
    another lost, writes its stacks to the run's folder and ends."""
    nonfinite_in_a_row: Count = 10
    """After this many consecutive steps without a finite gradient, the run rolls back to its last checkpoint and skips
    them, once."""
    boards: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Programs that show curves and pictures, see docs/how-to/boards.md#other-boards-wandb-and-mlflow."""
    profile: int = Field(0, ge=0, le=10_000)
    """Profile this many steps, from the fourth after each start: a trace for Perfetto (https://ui.perfetto.dev) in
    profile/, and a table of where their time went."""
    trace_samples: bool = False
    """Write the ids of every batch, and the frames of its clips, to samples-rank{r}.jsonl."""


class PretrainRun(Run):
    """The run's folder, reports and saves. Settings named `*_every` count steps."""

    probe_every: Count | None = None
    """Steps between probes of the frozen encoder by labels, see docs/how-to/probes.md#while-a-run-trains. The last step
    is always probed; null: no probes. Without labels a note says so, and the run continues."""
    probe_samples: Count = 4096
    """Labelled samples used of `data.shards` and of `data.validation`: at most this many of each, spread evenly."""


class Model(Section):
    """The encoder: a timm vision transformer, or a multiscale one for clips."""

    name: Text = "vit_base_patch16_224"
    """Any timm VisionTransformer, Beit or Eva, DINOv2's and DINOv3's among them. With `data.frames`, a
    VisionTransformer encodes tubelets of 2 frames. For clips also `mvit_v2_s`, `mvit_v2_l`, and `mvit_v2` of any
    size, by options."""
    position_init: PositionInit = "random"
    """`random` (the paper); `sincos`: start from a sine-cosine table; `fixed`: keep that table."""
    decoder: DecoderKind | None = None
    """Encode visible patches only, and predict the others with this decoder, see docs/explanation/visible.md; null:
    encode all patches, as the paper does."""
    decoder_width: int = Field(256, gt=0, le=8192)
    """Width of the decoder's tokens, a multiple of 32."""
    mean: Channels = IMAGENET.mean
    """Mean by channel with which pixels in [0, 1] are normalised: ImageNet's."""
    std: Channels = IMAGENET.std
    """Standard deviation by channel."""
    init: LocalPath | None = None
    """Weights to start from: MaskFeat's from SlowFast, mmpretrain or mmselfsup, those of MAE or BEiT, or any encoder's
    with timm's names (a torch or .safetensors file, or a folder that `maskfeat export` or timm wrote), see
    docs/how-to/weights.md. A run is bound to their SHA-256, not to this path."""
    options: Options = Field(default_factory=Options)
    """Passed to timm: embed_dim, depth, num_heads, drop_path_rate and others, see
    docs/reference/settings.md#options-of-the-model."""

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

    name: Text = Field("adamw", json_schema_extra={"enum": [*OPTIMIZERS]})
    """The optimizer, see docs/reference/settings.md#optimizers."""
    epochs: float = Field(gt=0, le=10**6)
    """Passes over the training set."""
    batch_size: int = Field(gt=0, le=2**20)
    """Images, or views of them, per step, over all ranks and accumulation."""
    lr: Rate = Field(2e-4, gt=0)
    """Peak learning rate per 256 images of a batch: it is scaled linearly with `optim.batch_size`."""
    warmup_lr: Rate = 1e-6
    """Learning rate at which the linear warm-up starts."""
    min_lr: Rate = 1e-6
    """Learning rate at which the cosine ends."""
    warmup_epochs: float = Field(30, ge=0)
    """Length of the warm-up."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Decay rates of AdamW, LAMB and Lion; the first is the momentum of SGDW."""
    weight_decay: Rate = 0.05
    """Weight decay, which is not applied to vectors and biases, as in the paper's code."""
    clip: float | None = Field(0.02, gt=0, le=10**6)
    """Largest L2 norm of the gradient; null: no clipping."""

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in OPTIMIZERS:
            raise ValueError(
                f"optim.name={name[:100]} is not an optimizer with which runs resume exactly: "
                f"choose one of {', '.join(OPTIMIZERS)}"
            )
        return name

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"optim.warmup_epochs={self.warmup_epochs:g} must be less than optim.epochs={self.epochs:g}"
            )
        return self


class Engine(Section):
    """The computation of a step."""

    zero_stage: int = Field(1, ge=0, le=3)
    """Stage of ZeRO. From 1 on, the optimizer's state is partitioned among the ranks; from 2 on, the gradients, too;
    at 3, the weights, too."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Number format of the computation; master weights and moments are fp32. DeepSpeed accumulates 16-bit gradients in
    16 bits at stage 0, and in fp32 at the others."""
    tf32: bool = False
    """Let GPUs round the factors of fp32 products and convolutions to TensorFloat-32 (10 bits of mantissa instead of
    23), for which they have faster hardware. It matters under `engine.precision=fp32`; false: full fp32."""
    micro_batch: Count | None = None
    """Largest number of images that a rank computes at once, and at least `data.repeats` x `mask.repeats`; gradients
    are accumulated over its share of the batch; null: the whole share at once."""
    compile: Literal["none", "target", "all"] = "all"
    """Parts that torch.compile compiles: `none`, the HOG `target`, or `all` (target and model; not at ZeRO 3)."""
    activation_checkpointing: bool = False
    """Recompute blocks in the backward pass instead of keeping their activations: less memory, the same numbers."""

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        if self.zero_stage == 3 and self.compile == "all":
            raise ValueError(
                "engine.compile=all fails under engine.zero_stage=3, which partitions the weights: change one of them"
            )
        return self
