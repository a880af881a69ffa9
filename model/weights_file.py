"""Load tensors, and nothing else, from weights files that are not trusted.

A file's first bytes decide how it is read, and only tensors are unpickled.
"""

import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch

# Classes beside the tensors in checkpoints of mmengine (logs, as in mmselfsup's published ones), MAE and timm
_NOTHING = (
    "argparse.Namespace",
    "builtins.getattr",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.PosixPath",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
)
_PICKLED_BY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save's format before it wrote archives
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!")
WHOLE_MODEL = "maskfeat.safetensors"  # with its head, as scripts/export.py --format maskfeat writes it
_LONGEST = 1000  # most characters in a message


class _Nothing:
    """Replaces anything that is not a tensor in unpickling: it keeps nothing and does nothing."""

    def __new__(cls, *_: Any) -> Self:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


class WeightsError(ValueError):
    """A weights file cannot be used; the message is one line that names it and what is wrong with it."""

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message[:_LONGEST])
        super().__init__(line if len(message) <= _LONGEST else f"{line}...")


def weights_file(path: Path) -> Path:
    """Return the weights file: `path`, or that of a folder: model.safetensors in timm's layout, or else `WHOLE_MODEL`.

    Raises:
        WeightsError: the file is missing.
    """
    try:
        file = path / "model.safetensors" if path.is_dir() else path
        if path.is_dir() and not file.exists() and (path / WHOLE_MODEL).exists():
            file = path / WHOLE_MODEL
        if not file.exists():
            raise WeightsError(f"there is no weights file {file}")
        if not file.is_file():  # opening a pipe would wait
            raise WeightsError(f"{file} is not a file")
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from None
    return file


def load(file: Path) -> Any:
    """Load a file of safetensors or torch.save: tensors, on the CPU, and containers of them.

    Raises:
        WeightsError: it is another kind of file, is damaged, or contains more than tensors.
    """
    try:
        with file.open("rb") as opened:
            head = opened.read(tarfile.BLOCKSIZE)
        if head[8:9] == b"{":
            return safetensors.torch.load_file(file)
        zipped = head.startswith(b"PK")
        if strange := _strange_archive(file) if zipped else _strange(head):
            raise WeightsError(f"{file} {strange}")
        if file.suffix == ".safetensors":  # torch, too, goes by this suffix
            raise WeightsError(f"{file} was written by torch.save: rename it to .pth")
        with torch.serialization.safe_globals([(_Nothing, name) for name in _NOTHING]):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except WeightsError:
        raise
    except Exception as error:  # a damaged or hostile file may raise anything
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise WeightsError(f"{file} is damaged: copy or download it again ({reason[:200]})") from None
        raise WeightsError(
            f"{file} contains more than tensors ({refused[1]}), which is not loaded, since it could run code: if you "
            "trust it, load it with weights_only=False and save its model_state or state_dict alone"
        ) from None


def _strange(head: bytes) -> str | None:
    """Describe a file that begins with `head` and is not weights; None if torch.save may have written it."""
    if not head:
        return "is empty: download it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer instead of the weights: run `git lfs pull` where it came from"
    if head.lstrip().startswith(b"<"):
        return "is a web page instead of the weights: download the file itself"
    if head.startswith(_COMPRESSED) or _is_tar(head):
        return "is a compressed file or an archive: unpack it first"
    if head.startswith(_PICKLED_BY_TORCH):
        return None
    if head.startswith(b"\x80"):
        return "is a pickle that torch.save did not write: if you trust it, load it and save its tensors by torch.save"
    if head.decode("utf-8", "ignore").replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        return "is text instead of weights"
    return "was written neither by torch.save nor by safetensors, or is damaged"


def _is_tar(head: bytes) -> bool:
    """Return whether this is the header of a tar, which torch would parse further than is safe."""
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _strange_archive(file: Path) -> str | None:
    """Describe a defect of a zip archive that torch would not notice or name; None if there is none."""
    if not zipfile.is_zipfile(file):
        return "is damaged: it was cut short, download it again"
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    names = {member.filename.rpartition("/")[2] for member in members}
    if "constants.pkl" in names:
        return "is TorchScript, which is a program: save its state_dict() by torch.save"
    if "data.pkl" not in names:
        return "is an archive that torch.save did not write: unpack it first"
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):  # torch would read these bytes as weights
        return "is a compressed archive: load it with torch.load(..., weights_only=True) and write it with torch.save"
    return None
