"""The files of a checkpoint: their checksums, and the tensors that they may contain."""

from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import float32

from shards.files import sha256_of

Shapes = dict[str, tuple[int, ...]]  # shapes of tensors, by name


def seal(path: Path) -> dict[str, Any]:
    """Return the entry of a file in files.json. Raises as `plain`."""
    return {"bytes": plain(path).stat().st_size, "sha256": sha256_of(path)}


def plain(path: Path) -> Path:
    """Return the path if it is a regular file. Raises OSError for a pipe, which would block, or an endless device."""
    if not path.is_file():
        raise OSError(f"{path.name} is missing, or not a regular file")
    return path


def shapes_in(part: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of the tensors in a file, after checking that a run can resume from their values.

    Raises:
        ValueError: a tensor is not fp32, has a value that is not finite, or is a negative mean of squares.
        SafetensorError: the file is not a safetensors file.
    """
    with safe_open(part, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            if tensor.dtype != float32 or not tensor.numel():
                raise ValueError(f"{name} is {tensor.dtype}, {tuple(tensor.shape)}, instead of numbers in fp32")
            least, most = (float(value) for value in tensor.aminmax())  # NaN if any is; much faster than `isfinite`
            if not (isfinite(least) and isfinite(most)):
                raise ValueError(f"{name} has values that are not finite")
            if name.startswith("exp_avg_sq/") and least < 0:
                raise ValueError(f"{name}, a mean of squares, has negative values")
            yield name, tuple(tensor.shape)
