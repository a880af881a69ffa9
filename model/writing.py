"""Write tensors as safetensors."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors as safetensors, for the readers of the folder. Raises OSError where that is not possible."""
    with os_errors(file):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    share(file)


@contextmanager
def os_errors(file: Path) -> Iterator[None]:
    """Raise the OSError that kept safetensors from writing a file, which it reports as an error of its own."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from None


def share(file: Path) -> None:
    """Give a safetensors file, which only its owner may read, the readers of its folder."""
    with suppress(PermissionError):  # a file system without modes
        file.chmod(file.stat().st_mode | file.parent.stat().st_mode & 0o444)
