"""Files that do not contain usable weights: each is one error that names the true reason, and nothing in it runs."""

import gzip
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from golden import checkpoints
from scripting import Hostile
from torch import nn

from model.convert import load_slowfast
from model.weights import WeightsError, read


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["beside", "inside"])
def test_code_in_a_checkpoint_does_not_run(where: str, zipped: bool, tmp_path: Path) -> None:
    tensors: dict[str, Any] = checkpoints.tensors("slowfast", "pretraining")
    content = {"model_state": tensors | ({"x": Hostile(tmp_path / "ran")} if where == "inside" else {})}
    content |= {"cfg": Hostile(tmp_path / "ran")} if where == "beside" else {}
    torch.save(content, tmp_path / "file", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        WeightsError, match=r"contains more than tensors \((posix|nt)\.mkdir\), which is not loaded"
    ) as error:
        load_slowfast(tmp_path / "file")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "ran").exists()  # so it would have


@pytest.mark.parametrize("suffix", [".pth", ".old", ".safetensors"])
def test_a_file_cut_anywhere_is_one_error(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"file{suffix}"
    tensors = checkpoints.tensors("slowfast", "pretraining")
    if suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        checkpoints.write(path, "slowfast", tensors, _use_new_zipfile_serialization=suffix == ".pth")
    whole = path.read_bytes()
    for length in [*range(0, 300, 13), *range(300, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError) as error:
            read(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_files_without_weights(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in ([1, 2], {}, {"model_state": 3}, {"model_state": {}}, {"a": torch.ones(1), "b": 3}, torch.ones(3)):
        torch.save(content, path)
        with pytest.raises(WeightsError, match="contains no weights"):
            read(path)
    torch.save({3: torch.ones(1)}, path)
    with pytest.raises(WeightsError, match="contains no weights"):
        read(path)
    itself: dict[str, Any] = {}
    itself["model"] = itself
    torch.save(itself, path)
    with pytest.raises(WeightsError, match="contains no weights"):
        read(path)
    path.write_bytes(pickle.dumps({"model_state": {"a": [1]}}, protocol=2))
    with pytest.raises(WeightsError):
        read(path)
    torch.save({"model_state": {"pos_embed": torch.zeros(1).expand(10**6, 10**6)}}, path)
    with pytest.raises(WeightsError, match="claim more bytes"):
        read(path)
    for nothing in (tmp_path / "none", tmp_path):
        with pytest.raises(WeightsError, match="there is no weights file"):
            read(nothing)


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def compressed_archive() -> bytes:
    with zipfile.ZipFile(io.BytesIO(saved({"a": torch.ones(1000)}))) as archive:
        return zipped({name: archive.read(name) for name in archive.namelist()}, zipfile.ZIP_DEFLATED)


def tarred(size: bytes | None = None) -> bytes:
    """Return a tar; with a size field, one that tarfile would never finish reading."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("a.pth"), io.BytesIO(b""))
    header = bytearray(buffer.getvalue())
    if size:
        header[124:136] = size
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header[:512])
    return bytes(header)


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Conv1d(2, 2, 1)), buffer)
    return buffer.getvalue()


HTML = b"\n <!DOCTYPE html><html><head><title>Sign in</title></head></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 343279349\n"


@pytest.mark.filterwarnings("ignore")  # torch's, of TorchScript
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: download it again"),
        (POINTER, "is a Git LFS pointer instead of the weights: run `git lfs pull`"),
        (HTML, "is a web page instead of the weights: download the file itself"),
        (b"Not found", "is text instead of weights"),
        (b'{"error": "Repository not found"}', "is text instead of weights"),
        ("caf\u00e9 ".encode() * 100, "is text instead of weights"),
        (gzip.compress(saved({"a": torch.ones(1)})), "unpack it first"),
        (zipped({"a.pth": saved({"a": torch.ones(1)})}), "unpack it first"),
        (tarred(), "unpack it first"),
        (tarred(b"\xff" * 10 + b"\xfe\x00"), "unpack it first"),
        (compressed_archive, "is a compressed archive: load it with torch.load"),
        (pickle.dumps({"a": [1]}), "is a pickle that torch.save did not write"),
        (scripted, "is TorchScript, which is a program"),
        (saved({"a": torch.ones(1000)})[:2000], "is damaged: it was cut short, download it again"),
        (b"\x93NUMPY\x01\x00" + bytes(100), "was written neither by torch.save nor by safetensors"),
        (bytes(1000), "was written neither by torch.save nor by safetensors"),
        ((2**60).to_bytes(8, "little") + b"{}", "is damaged: copy or download it again"),
        ((50).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}', "is damaged: copy"),
    ],
)
def test_the_true_reason_is_named(
    content: bytes | Callable[[], bytes], message: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content())
    with pytest.raises(WeightsError) as error:
        read(path)
    assert str(error.value).startswith((f"{path} is ", f"{path} was ")) and message in str(error.value)
    assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_a_file_of_torchs_with_another_name(tmp_path: Path) -> None:
    (tmp_path / "file.safetensors").write_bytes(saved({"a": torch.ones(1)}))
    with pytest.raises(WeightsError, match=r"was written by torch\.save: rename it to \.pth"):
        read(tmp_path / "file.safetensors")


def test_what_is_not_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for strange in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(WeightsError, match="is not a file"):
            read(strange)
    with pytest.raises(WeightsError, match="cannot be read: File name too long"):
        read(tmp_path / ("a" * 300))
    safetensors.torch.save_file({"cls_token": torch.ones(1)}, tmp_path / "model.safetensors")
    os.mkfifo(tmp_path / "config.json")
    assert read(tmp_path).normalisation is None


def test_names_in_a_file_do_not_reach_a_terminal(tmp_path: Path) -> None:
    tensors = checkpoints.tensors("slowfast", "pretraining") | {"\x1b[2J\n" + "x" * 10**5: torch.ones(1)}
    with pytest.raises(WeightsError, match=r"unknown \\x1b\[2J\\nxxx") as error:
        load_slowfast(checkpoints.write(tmp_path / "file", "slowfast", tensors))
    assert str(error.value).isprintable() and len(str(error.value)) < 1100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: weight.fill_(float("nan")), "contains NaN or infinity"),
        (lambda weight: weight.double() * 1e300, "contains NaN or infinity"),
        (lambda weight: weight.to(torch.int8), "contains int8 instead of floating-point numbers"),
        (lambda weight: weight > 0, "contains bool instead of"),
        (lambda weight: weight.to(torch.complex64), "contains complex64 instead of"),
    ],
)
def test_numbers_that_no_training_can_start_from(change: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    tensors = checkpoints.tensors("slowfast", "pretraining")
    tensors["pos_embed"] = change(tensors["pos_embed"])
    with pytest.raises(WeightsError, match=f"pos_embed {message}"):
        load_slowfast(checkpoints.write(tmp_path / "file", "slowfast", tensors))


NO_WEIGHTS: dict[str, Callable[[], torch.Tensor]] = {
    "meta": lambda: torch.zeros(2, 2, device="meta"),
    "sparse": lambda: torch.eye(2).to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
}


@pytest.mark.filterwarnings("ignore")  # torch's, of kinds that it will drop one day
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_tensors_of_other_kinds_are_no_weights(kind: str, tmp_path: Path) -> None:
    """They load without running code, but cannot be copied."""
    torch.save({"model": {"pos_embed": NO_WEIGHTS[kind]()}}, tmp_path / "file")
    with pytest.raises(WeightsError) as error:
        read(tmp_path / "file")
    assert str(tmp_path / "file") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "[" * 100_000,
        "\xff",
        '{"pretrained_cfg": 3}',
        '{"pretrained_cfg": {"mean": 0.5, "std": [1, 1, 1]}}',
        '{"pretrained_cfg": {"mean": [0, 0, 0], "std": [1, 1, 0]}}',
        '{"pretrained_cfg": {"mean": [0, 0, NaN], "std": [1, 1, 1]}}',
        '{"pretrained_cfg": {"mean": [0, 0, 0], "std": ["os", 1, 1]}}',
    ],
)
def test_a_configuration_that_is_none_is_one_error(content: str, tmp_path: Path) -> None:
    safetensors.torch.save_file({"cls_token": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(content.encode("latin1"))
    with pytest.raises(WeightsError, match=r"config\.json does not say how images are normalised") as error:
        read(tmp_path)
    assert "\n" not in str(error.value)
