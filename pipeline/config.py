"""A recipe: every setting of a run, typed and checked before anything starts.

Each setting has its default here, or for fine-tuning in finetune/config.py, and nowhere else; DeepSpeed's own
configuration is made from it (train/engine.py).
"""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError, model_validator

from pipeline.data.plan import BLOCK, LANES, MOST_IN_BLOCK, MOST_LANES
from pipeline.record import to_be_given
from pipeline.targets.hog import CELL
from shards.secrets import MASK, PIPE, masked_values
from shards.storage import has_query, shows_credentials

RECIPES = Path(__file__).resolve().parents[1] / "scripts" / "recipes"

Share = Annotated[float, Field(gt=0, lt=1)]
Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class ConfigError(ValueError):
    """A recipe or an override is wrong. The message names the key and the remedy."""


class Section(BaseModel):
    """Settings that refuse keys they do not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Run(Section):
    """Where a run lives and what it reports when. `*_every` count steps."""

    dir: Path
    seed: int = Field(0, ge=0, lt=2**62)
    max_steps: int | None = Field(None, ge=1)  # ends early, without changing the schedule
    log_every: int = Field(20, ge=1)
    eval_every: int = Field(1000, ge=1)
    save_every: int = Field(1000, ge=1)
    keep: int = Field(3, ge=1)  # newest checkpoints kept, and besides these ...
    keep_every: int | None = Field(None, ge=1)  # ... for good those of every so many steps
    deadline: float = Field(600, gt=0)  # seconds that any part of a step may take before a rank gives up
    nonfinite_in_a_row: int = Field(10, ge=1)  # steps without a finite gradient that make a run roll back, once
    profile: int = Field(0, ge=0)  # profile so many steps of this life of the run
    trace_samples: bool = False  # write the sample ids of every batch to samples-rank{r}.jsonl


class Data(Section):
    """What is read, in which order, and how it is cropped."""

    mode: Literal["exact", "stream"] = "exact"  # stream: tars without a manifest, see docs/data.md
    shards: str  # folder or URL that `maskfeat-shards` built or indexed; for mode=stream the URLs of tars
    validation: str | None = None  # another such folder or URL
    validation_samples: int | None = Field(4096, ge=1)  # of these, the first so many; null: all
    stream_samples: int | None = Field(None, ge=1)  # for mode=stream, how many samples count as an epoch
    stream_buffer: int = Field(2048, ge=1)  # for mode=stream, images that a rank shuffles among themselves
    cache: Path | None = None  # folder in which a node keeps remote shards; None: only range requests
    cache_size: ByteSize | None = None  # "500GB" for instance; None: what the disk has, but for 5%
    deadline: float = Field(300, gt=0)  # seconds until a request of remote storage is given up, with all its retries
    bad_in_a_row: int = Field(100, ge=1)  # bad samples in a row on a rank end the run, and so does ...
    bad_share: float = Field(0.01, ge=0, le=1)  # ... this share of all ranks', once more than so many were bad
    image_size: int = Field(224, gt=0)
    crop_scale: Range = (0.5, 1.0)  # of the image's area
    crop_ratio: Range = (3 / 4, 4 / 3)  # width over height
    flip: bool = True
    lanes: int = Field(LANES, ge=1, le=MOST_LANES)
    block: int = Field(BLOCK, ge=1, le=MOST_IN_BLOCK)
    read_threads: int = Field(4, ge=1)
    requests: int = Field(64, ge=1)  # range requests under way at once, where shards are remote
    decode_threads: int = Field(4, ge=1)
    hw_decoder_load: Literal[0, 1] = 0  # share of the GPU's JPEG hardware; anything between is not reproducible

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        for key in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"data.{key}=[{low:g}, {high:g}] is upside down")
        if self.crop_scale[1] > 1:
            raise ValueError(f"data.crop_scale={list(self.crop_scale)} asks for more than the whole image")
        if (self.mode != "stream" and self.shards.startswith(PIPE)) or (self.validation or "").startswith(PIPE):
            raise ValueError(f"only data.shards of data.mode=stream may be a command ({PIPE}): give a folder or a URL")
        for key in ("shards", "validation"):
            urls = [text for text in (getattr(self, key) or "").split("::") if MASK not in text and PIPE not in text]
            if any(shows_credentials(url) or has_query(url) for url in urls):
                raise ValueError(
                    f"data.{key} holds credentials or a query: leave them out, credentials come from the environment"
                )
        if self.mode == "stream" and self.stream_samples is None:
            raise ValueError("data.mode=stream cannot count the samples: set data.stream_samples, for the schedule")
        return self


class Mask(Section):
    """Which patches are hidden."""

    ratio: Share = 0.4


class Target(Section):
    """What is predicted at masked patches."""

    kind: Literal["hog", "pixels", "features"] = "hog"
    teacher: str | None = None  # for kind=features: a timm name, or a folder that timm or scripts/export.py wrote
    teacher_weights: Path | None = None  # of a timm name, from a file; None: timm downloads them
    loss: Literal["cosine", "mse"] = "cosine"  # for kind=features

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        if self.kind == "features" and self.teacher is None:
            raise ValueError("target.kind=features has no teacher: set target.teacher")
        if self.kind != "features" and (self.teacher or self.teacher_weights):
            raise ValueError(f"target.kind={self.kind} has no teacher: leave it out, or set kind to features")
        return self


class Model(Section):
    """The encoder: a timm vision transformer."""

    name: str = "vit_base_patch16_224"
    position_init: Literal["random", "sincos"] = "random"
    init: Path | None = None  # weights to start from; a run is bound to their SHA-256, not to this path
    options: dict[str, int | float | bool] = {}  # passed on to timm: embed_dim, depth, num_heads, drop_path_rate, ...


class Optim(Section):
    """AdamW under a linear warm-up and a cosine."""

    epochs: float = Field(gt=0)
    batch_size: int = Field(gt=0)  # images a step over all ranks and accumulation
    lr: float = Field(2e-4, gt=0)  # per 256 images of a batch: linear scaling
    warmup_lr: float = Field(1e-6, ge=0)
    min_lr: float = Field(1e-6, ge=0)
    warmup_epochs: float = Field(30, ge=0)
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: float = Field(0.05, ge=0)
    clip: float | None = Field(0.02, gt=0)  # L2 norm of the gradient; null: it stays as it is

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"optim.warmup_epochs={self.warmup_epochs:g} leaves nothing of optim.epochs={self.epochs:g}"
            )
        return self


class Engine(Section):
    """How a step is computed."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    micro_batch: int | None = Field(None, ge=1)  # images a rank computes at once, at most; None: all of its share
    compile: Literal["none", "target", "all"] = "all"  # torch.compile: nothing, the HOG target, or the model too
    activation_checkpointing: bool = False  # compute blocks twice instead of keeping what they computed: less memory

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        if self.zero_stage == 3 and self.compile == "all":
            raise ValueError(
                "engine.compile=all fails under engine.zero_stage=3, whose weights are in pieces: change one of them"
            )
        return self


class TrainingRecipe(Section):
    """What all runs have. `Recipe` is of pre-training, `pipeline.finetune.config.FinetuneRecipe` of fine-tuning."""

    folder: ClassVar[Path]  # of recipes that are known by name

    run: Run
    data: Data
    model: Model = Model()
    optim: Optim
    engine: Engine = Engine()

    def plain(self) -> dict[str, Any]:
        """All settings as plain values that may be written and shown: what is secret in them is masked."""
        values: dict[str, Any] = masked_values(self.model_dump(mode="json"))
        return values

    def micro_batch(self, world_size: int) -> int:
        """Images a rank computes at once: `engine.micro_batch` or, where that does not divide its share, fewer.

        Raises:
            ConfigError: the batch cannot be shared out evenly.
        """
        share, rest = divmod(self.optim.batch_size, world_size)
        if rest:
            raise ConfigError(
                f"optim.batch_size={self.optim.batch_size} cannot be shared out evenly to {world_size} ranks"
            )
        most = min(share, self.engine.micro_batch or share)
        return next(images for images in range(most, 0, -1) if share % images == 0)


class Recipe(TrainingRecipe):
    """A whole pre-training run."""

    folder: ClassVar[Path] = RECIPES

    mask: Mask = Mask()
    target: Target = Target()

    @model_validator(mode="after")
    def _has_whole_cells(self) -> Self:
        if self.target.kind == "hog" and self.data.image_size % CELL:
            raise ValueError(f"data.image_size={self.data.image_size} is no multiple of the {CELL}-pixel HOG cell")
        return self


AnyRecipe = TypeVar("AnyRecipe", bound=TrainingRecipe)


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """`load` a recipe of pre-training."""
    return load(Recipe, recipe, overrides)


def load(kind: type[AnyRecipe], recipe: str, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Read a recipe, apply overrides, check the whole.

    Args:
        kind: of recipe.
        recipe: the name of a file in `kind.folder`, or the path of a YAML file.
        overrides: "section.key=value" with a YAML value; the last one wins. `run.dir` is runs/RECIPE, or
            runs/finetune/RECIPE, unless given.

    Raises:
        ConfigError: no such recipe, no YAML, an unknown key, a wrong value or an impossible combination.
    """
    path = Path(recipe) if recipe.endswith((".yaml", ".yml")) else kind.folder / f"{recipe}.yaml"
    try:
        settings = yaml.safe_load(path.read_text())
    except OSError:
        known = ", ".join(sorted(file.stem for file in kind.folder.glob("*.yaml")))
        raise ConfigError(f"no recipe {recipe!r}: give one of {known}, or the path of a .yaml file") from None
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: bytes that are no text, days that are no dates
        raise ConfigError(f"{path} is no YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds no settings")
    empty: dict[str, Any] = {section: {} for section in kind.model_fields}
    settings = empty | {section: {} if keys is None else keys for section, keys in settings.items()}
    for section, keys in settings.items():
        if not isinstance(keys, dict):
            raise ConfigError(f"{path}: {section} is no section of settings but {keys!r}")
    if problem := to_be_given(path, settings, overrides):
        raise ConfigError(problem)
    for override in overrides:
        _apply(kind, settings, override)
    settings["run"].setdefault("dir", str(Path("runs") / kind.folder.relative_to(RECIPES) / path.stem))
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(kind, problem) for problem in error.errors())) from None


def _apply(kind: type[TrainingRecipe], settings: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    section, dot, name = key.partition(".")
    if not (equals and dot and name):
        raise ConfigError(f"{override!r} is no override: write section.key=value, e.g. optim.epochs=100")
    if key not in _keys(kind):
        raise ConfigError(_unknown(kind, key))
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"{override!r}: {value!r} is no YAML value") from None
    settings[section][name] = parsed


def _keys(kind: type[TrainingRecipe]) -> Iterator[str]:
    for section, field in kind.model_fields.items():
        annotation = field.annotation
        assert isinstance(annotation, type) and issubclass(annotation, Section)
        yield from (f"{section}.{name}" for name in annotation.model_fields)


def _unknown(kind: type[TrainingRecipe], key: str) -> str:
    near = difflib.get_close_matches(key, list(_keys(kind)), n=3) or [
        k for k in _keys(kind) if k.startswith(key.split(".")[0] + ".")
    ]
    return f"unknown key {key}" + (f": did you mean {' or '.join(near)}?" if near else "")


def _explain(kind: type[TrainingRecipe], problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return _unknown(kind, key)
    if problem["type"] == "missing":
        return f"{key} is missing: set it in the recipe or give {key}=VALUE"
    if problem["type"] == "value_error":  # of a section or the whole, and names its keys
        return str(problem["ctx"]["error"])
    return f"{key}={problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
