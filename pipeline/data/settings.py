"""Settings of the data: the samples, their order, and their crops."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    ByteSize,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from model.size import ImageSize, Sides
from pipeline.data.plan import BLOCK, LANES, MOST_IN_BLOCK, MOST_LANES
from pipeline.settings import Count, Free, LocalPath, Place, Range, Seconds, Section, Threads
from shards.secrets import MASK, PIPE
from shards.storage import has_query, shows_credentials

Sampling = Literal["nominal", "stride", "fps", "segments"]


@dataclass(frozen=True)
class Clip:
    """The choice of a clip's frames; `pipeline.data.clips` has the arithmetic, and `Data` the settings."""

    frames: int
    sampling: Sampling
    stride: float
    fps: float | None


class MixedSet(Section):
    """A data set of a mixture."""

    shards: Place
    """Folder or URL that `maskfeat-shards` built or indexed."""
    weight: float | None = Field(None, ge=1e-6, le=1e9)
    """Share of the samples, relative to those of the other data sets; null, in all of them: its number of samples."""

    @model_validator(mode="before")
    @classmethod
    def _is_mapping(cls, given: object) -> object:
        if not isinstance(given, Mapping | MixedSet):
            raise ValueError("a data set is written as {shards: FOLDER OR URL}, with a weight if the others have one")
        return given


Side = Annotated[int, Field(gt=0, le=8192)]


def _set_name(name: str) -> str:
    if not re.fullmatch(r"[\w.-]{1,64}", name):  # it is part of the names of metrics
        raise ValueError("the name of a data set has up to 64 letters, digits and _ . -")
    return name


SetName = Annotated[str, AfterValidator(_set_name)]


class Data(Section):
    """Settings of the data: the samples, their order, and their crops."""

    labelled: ClassVar[bool] = False  # whether labels are used

    mode: Literal["exact", "stream"] = "exact"
    """`exact`: a data set with a manifest; `stream`: tars without one, see
    docs/explanation/data.md#without-a-manifest-datamodestream."""
    mixture: Free[dict[SetName, MixedSet] | None] = None
    """Instead of `data.shards`, several data sets: `{NAME: {shards: FOLDER OR URL, weight: 3}, ...}`, see
    docs/explanation/data.md#several-data-sets. Without weights each counts by its samples."""
    shards: Free[Place | None] = None
    """Folder or URL that `maskfeat-shards` built or indexed; for `data.mode=stream`, URLs of tars. Required unless
    `data.mixture` is set."""
    validation: Free[Place | None] = None
    """Another such folder or URL; null: no validation."""
    validation_images: Free[Place | None] = None
    """For a mixture of images and videos: images that are validated beside the videos of `data.validation`."""
    validation_samples: Free[Count | None] = 4096
    """Use at most this many samples of `data.validation`, the first ones; null: all."""
    stream_samples: Count | None = None
    """Samples that count as an epoch, required for `data.mode=stream`."""
    stream_buffer: int = Field(2048, ge=1, le=2**20)
    """For `data.mode=stream`: images in a rank's shuffle buffer."""
    cache: Free[LocalPath | None] = None
    """Folder on the node's disk for copies of remote shards; null: no cache."""
    cache_size: Free[ByteSize | None] = None
    """Size of that folder, as in `500GB`; null: 95% of its disk's free space."""
    deadline: Free[Seconds] = 300
    """Seconds after which a request to remote storage, with all its retries, ends the run."""
    bad_in_a_row: Free[Count] = 100
    """Consecutive bad samples on one rank that end the run."""
    bad_share: Free[float] = Field(0.01, ge=0, le=1)
    """Largest share of bad samples among all samples since the last start. A larger one ends the run, once more than
    `data.bad_in_a_row` samples were bad."""
    frames: int | None = Field(None, ge=1, le=1024)
    """Frames of a clip; null: the model sees images. 1 lets an image data set train a video model. In a mixture with
    videos, images have one frame whatever this is, see docs/explanation/data.md#images-beside-videos."""
    sampling: Sampling = "nominal"
    """Rule for the frames of a clip. `nominal`: `data.stride` apart in a video of 30 frames a second, whatever its
    rate; `stride`: exactly this many frames apart; `fps`: this many a second; `segments`: one of each of `data.frames`
    equal parts of the video."""
    stride: float = Field(4, gt=0, le=1000)
    """For `nominal` and `stride`: distance of the frames of a clip."""
    fps: float | None = Field(None, gt=0, le=1000)
    """For `fps`: frames a second."""
    repeats: int = Field(1, ge=1, le=64)
    """Clips, or crops of an image, made of each sample that is read. `optim.batch_size` counts all of them."""
    image_size: Side | tuple[Side, Side] = 224
    """Pixels, multiples of the patch: the side of a square, or `[height, width]`."""
    crop_scale: Range = (0.5, 1.0)
    """Range of the crop's share of the image's area."""
    crop_ratio: Range = (3 / 4, 4 / 3)
    """Range of the crop's width over its height, relative to that of `data.image_size`."""
    flip: bool = True
    """Mirror half of the images."""
    lanes: int = Field(LANES, ge=1, le=MOST_LANES)
    """Parts that an epoch is cut into. A multiple of the ranks, and a divisor of the batch, lets each rank keep to its
    own shards; 1: all ranks read all shards."""
    block: int = Field(BLOCK, ge=1, le=MOST_IN_BLOCK)
    """Samples of a lane that are shuffled together. With one lane and a block of all samples the order is a true
    permutation."""
    read_threads: Free[Threads] = 4
    """Per rank: concurrent reads from disks, or streamed tars."""
    requests: Free[int] = Field(64, ge=1, le=4096)
    """Per rank: concurrent range requests to remote shards."""
    decode_threads: Free[Threads] = 4
    """Per rank: CPU threads of DALI."""
    hw_decoder_load: int = Field(0, ge=0, le=1)
    """Share of JPEGs for the GPU's hardware decoder. 1 is not known to give the right pixels, see
    docs/explanation/data.md#decoding-on-a-gpu."""

    @field_validator("shards")
    @classmethod
    def _is_there(cls, shards: str | None, checked: ValidationInfo) -> str | None:
        if shards is None and checked.data.get("mixture", {}) is None:
            raise PydanticCustomError("missing", "neither data.shards nor data.mixture is set")
        return shards

    @field_validator("image_size", mode="before")
    @classmethod
    def _has_sides(cls, given: object) -> Sides:
        sides = given if isinstance(given, list | tuple) else [given, given]
        if len(sides) != 2:
            raise ValueError("it is one number, the side of a square, or [height, width]")
        try:
            return ImageSize(*map(TypeAdapter(Side).validate_python, sides)).sides
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"]) from None

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        for key in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"data.{key}=[{low:g}, {high:g}] is reversed")
        if self.crop_scale[1] > 1:
            raise ValueError(f"data.crop_scale={list(self.crop_scale)} asks for more than the whole image")
        self._check_places()
        self._check_mixture()
        if self.mode == "stream" and self.stream_samples is None:
            raise ValueError("data.mode=stream cannot count the samples: set data.stream_samples, for the schedule")
        if (self.sampling == "fps") != (self.fps is not None):
            raise ValueError("data.fps belongs to data.sampling=fps: set both, or neither")
        if self.sampling == "stride" and self.stride != int(self.stride):
            raise ValueError(f"data.stride={self.stride:g} must be a whole number for data.sampling=stride")
        if self.mode == "stream" and (self.clip or self.repeats > 1):
            raise ValueError("data.mode=stream reads images, each once: index the tars, and leave data.mode out")
        return self

    def _check_places(self) -> None:
        """Raise ValueError for commands in other settings, and for secrets in URLs."""
        streamed = self.mode == "stream"
        places = {
            "data.shards": self.shards,
            "data.validation": self.validation,
            "data.validation_images": self.validation_images,
        } | {f"data.mixture.{name}.shards": one.shards for name, one in (self.mixture or {}).items()}
        for key, place in places.items():
            if (place or "").startswith(PIPE) and not (streamed and key == "data.shards"):
                raise ValueError(
                    f"only data.shards of data.mode=stream may be a command ({PIPE}): give a folder or a URL"
                )
            urls = [text for text in (place or "").split("::") if MASK not in text and PIPE not in text]
            if any(shows_credentials(url) or has_query(url) for url in urls):
                raise ValueError(
                    f"{key} contains credentials or a query: leave them out, credentials come from the environment"
                )

    def _check_mixture(self) -> None:
        """Raise ValueError where the data sets or their weights are ambiguous."""
        if self.validation_images is not None and (self.mixture is None or self.labelled):
            raise ValueError(
                "data.validation_images is for pre-training on a data.mixture of images and videos: set it to null"
            )
        if self.mixture is None:
            return
        if not self.mixture:
            raise ValueError("data.mixture={} has no data set: give at least one, or null")
        if self.shards is not None:
            raise ValueError("data.shards and data.mixture exclude each other: set one of them to null")
        if self.mode == "stream":
            raise ValueError("data.mode=stream reads data.shards: index the tars for data.mixture, or leave it out")
        unweighted = [name for name, one in self.mixture.items() if one.weight is None]
        if 0 < len(unweighted) < len(self.mixture):
            raise ValueError(
                f"data.mixture.{unweighted[0]}.weight is missing: give all data sets a weight or, to weigh them by "
                "their samples, none"
            )

    @property
    def clip(self) -> Clip | None:
        """Return how clips are taken from videos; None if inputs are images."""
        return None if self.frames is None else Clip(self.frames, self.sampling, self.stride, self.fps)

    @property
    def size(self) -> ImageSize:
        """Return the size of the model's inputs."""
        return ImageSize.of(self.image_size)

    @property
    def inputs(self) -> str:
        """The word for the model's inputs: `images` or `clips`."""
        return "images" if self.frames is None else "clips"
