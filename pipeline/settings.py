"""The base class of a recipe's sections, and the types of their values."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class ConfigError(ValueError):
    """A recipe or an override is wrong. The message names the key and the remedy."""


def _expanded(value: Any) -> Any:
    """Expand `~` or `~user` at the beginning of a path; URLs and commands do not begin so."""
    if not isinstance(value, str | Path):
        return value
    if "\0" in str(value) or value == "":
        raise ValueError("a path has at least one character, and none that is NUL")
    try:
        str(value).encode()  # not as a file name: a path that another run recorded is text in every locale
    except UnicodeEncodeError:
        raise ValueError("it is not UTF-8, or the locale is not: rename it, or set LC_ALL=C.UTF-8") from None
    if not str(value).startswith("~"):
        return value
    try:
        return str(Path(value).expanduser())
    except RuntimeError:
        raise ValueError("there is no such user: write ./~ if the name begins with ~") from None


def _here(value: Any) -> Any:
    """Expand a path that must be on this machine; `https://x` would otherwise be a folder called `https:`."""
    if "://" in str(value):
        raise ValueError("it must be a path, not a URL: mount it, or copy it here")
    return _expanded(value)


# Limits reject mistyped numbers, and are far beyond the needs of any run
Text = Annotated[str, Field(min_length=1)]
Place = Annotated[str, BeforeValidator(_expanded)]  # a path, a URL or any source that webdataset opens
LocalPath = Annotated[Path, BeforeValidator(_here)]
Count = Annotated[int, Field(ge=1, le=10**12)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Seconds = Annotated[float, Field(gt=0, le=10**8)]
Minutes = Annotated[float, Field(gt=0, le=10**6)]
Rate = Annotated[float, Field(ge=0, le=1000)]
Share = Annotated[float, Field(gt=0, lt=1)]
Range = tuple[Annotated[float, Field(ge=1e-6, le=1000)], Annotated[float, Field(ge=1e-6, le=1000)]]


# Marks a setting, or a whole section, that a run may change when it resumes. All others decide what the run computes:
# pipeline/train/resume.py compares them with the checkpoint.
FREE = "may change on resuming"
Setting = TypeVar("Setting")
Free = Annotated[Setting, FREE]


class Section(BaseModel):
    """Settings that reject unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
