"""dataset.json, the description of a data set; docs/reference/data-format.md describes its fields.

It is written last: a folder without it contains an unfinished build.
"""

import errno
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError, with_config

from shards.files import ShardError, parse_json
from shards.media.media import Alpha, Check, CheckOptions, Depth, Frames
from shards.remote.urls import is_url
from shards.storage import has_query, join, printable_url, read, refuse_without_ranges, why_refused
from shards.tables.reading import FORMAT, readable, unusable

DATASET = "dataset.json"
VERSION = 2
_VERSIONS = (1, VERSION)  # versions that are read; a manifest of version 1 has fewer columns
_LONGEST_NAME = 4096  # the limit of paths
_MOST_BYTES = 2**60  # of all tars, so that sums fit into 64 bits

Part = Literal["training", "validation"]
Text = InstanceOf[str]  # with any bytes that a file name may have
Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Positive = Annotated[int, Field(strict=True, ge=1, lt=2**63)]
_exactly = with_config(ConfigDict(extra="forbid"))


@_exactly
@dataclass(frozen=True)
class Shard:
    """One tar, as dataset.json lists it: its name, number of samples, size in bytes and SHA-256.

    `name` is relative to the folder of the data set or, for a tar made elsewhere, an absolute path or a URL.
    """

    name: Text
    samples: Positive
    bytes: Count
    sha256: Text


@_exactly
@dataclass(frozen=True)
class Options:
    """The options that decide a build's output, besides its source.

    `part` is the side of a hold-out that the data set is, and `validation` and `group_by` are the options of that.
    """

    samples_per_shard: Positive
    resize: Positive | None
    max_pixels: Positive
    seed: Annotated[int, Field(strict=True)]
    check: Check = "decode"  # the default of data sets made before there was a choice
    frames: Frames | None = None
    frame_stride: Positive = 1
    alpha: Alpha = "reject"
    depth: Depth = "reject"
    part: Part | None = None
    validation: Text | None = None
    group_by: Text | None = None

    def for_check(self) -> CheckOptions:
        """Return the options that concern single files."""
        return CheckOptions(
            self.max_pixels, self.resize, self.check, self.frames, self.frame_stride, self.alpha, self.depth
        )

    def facts(self) -> dict[str, Any]:
        """Return the options by name. Omit those that older versions do not have where they are unset."""
        facts = asdict(self)
        later = () if self.frames else ("frames", "frame_stride")
        unused = [name for name in ("alpha", "depth") if facts[name] == "reject"]
        unused += [name for name in ("part", "validation", "group_by") if facts[name] is None]
        return {name: fact for name, fact in facts.items() if name not in (*later, *unused)}


@_exactly
@dataclass(frozen=True)
class Dataset:
    """The contents of dataset.json. `bytes` counts image bytes only; `fingerprint` identifies the build's input.

    `options` are None where the tars were made elsewhere.
    """

    samples: Positive
    bytes: Count
    classes: list[Text]
    shards: list[Shard]
    manifest_sha256: Text
    rejects: Count
    ignored: Count
    options: Options | None
    fingerprint: Text

    def dump(self) -> str:
        """Return the text of dataset.json."""
        facts = asdict(self) | {"options": self.options.facts() if self.options else None}
        return json.dumps({"format": FORMAT, "version": VERSION} | facts, indent=1) + "\n"

    @classmethod
    def load(cls, root: str | Path) -> "Dataset":
        """Read dataset.json in a folder or URL. Raises ShardError without a finished build of a known version."""
        path = join(root, DATASET)
        if has_query(str(root)):
            raise ShardError(
                f"{printable_url(str(root))}: has a query, which its files do not have; leave it out, credentials come "
                "from the environment"
            )
        with readable(path):
            try:
                text = read(path)
                refuse_without_ranges(path)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    raise
                if not is_url(str(root)) and not Path(root).is_dir():
                    cause = "is not a folder; give that of a data set" if Path(root).exists() else "no such folder"
                    raise ShardError(f"{root}: {cause}") from None
                raise ShardError(
                    f"{printable_url(str(root))}: has no {DATASET}, so it is not a finished data set; correct the "
                    "name, or run its `maskfeat-shards build` or `index` again"
                ) from None
            fields = parse_json(text)
        if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
            raise unusable(path, f"its format is not {FORMAT}")
        version = fields.pop("version", None)
        if type(version) is not int:
            raise unusable(path, "version: it is not a whole number")
        if version not in _VERSIONS:
            raise ShardError(
                f"{printable_url(path)}: has version {version}, which is not 1 to {VERSION}; update maskfeat-pipeline"
            )
        try:
            dataset = _DESCRIPTION.validate_python(fields)
        except ValidationError as error:
            raise unusable(path, _first(error)) from None
        names = [shard.name for shard in dataset.shards]
        for name in filter(is_url, names):
            if why := why_refused(name):
                raise ShardError(f"{path}: names the shard {printable_url(name)}, which is not opened: {why}")
        for what, listed in (("classes", dataset.classes), ("shards", names)):
            if len(set(listed)) < len(listed):
                raise unusable(path, f"{what}: a name is there twice")
        if not names or not all(map(_is_name, names)):
            raise unusable(
                path, f"shards: there is at least one, and each has a valid name of 1 to {_LONGEST_NAME} characters"
            )
        if any(shard.samples > shard.bytes for shard in dataset.shards):
            raise unusable(path, "shards: one has more samples than bytes")
        if sum(shard.bytes for shard in dataset.shards) > _MOST_BYTES:
            raise unusable(path, "shards: they have more bytes than any storage")
        return dataset


def _is_name(shard: str) -> bool:
    """Return whether a file or URL may have this name."""
    try:
        shard.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # JSON may contain lone surrogates
        return False
    return 0 < len(shard) <= _LONGEST_NAME and "\0" not in shard


_DESCRIPTION: TypeAdapter[Dataset] = TypeAdapter(Dataset)


def _first(error: ValidationError) -> str:
    """Return the first error: `shards.3.bytes: Input should be a valid integer`."""
    problem: Any = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
