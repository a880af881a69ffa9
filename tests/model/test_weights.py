"""Reading weights files: every format; a wrong or hostile file is one error, and runs nothing."""

import gzip
import io
import json
import os
import pickle
import sys
import tarfile
import types
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from golden import checkpoints
from scripting import Hostile
from torch import nn

from model.convert import load_mmpretrain, load_slowfast
from model.weights import Normalisation, WeightsError, read


def test_files_of_every_format_are_read_alike(tmp_path: Path) -> None:
    """Archives of torch.save and the plain pickles before them, half precision, and the command line of a run."""
    tensors = checkpoints.tensors("mmpretrain", "pretraining")
    want = load_mmpretrain(checkpoints.write(tmp_path / "new", "mmpretrain", tensors)).state_dict()
    old = checkpoints.write(tmp_path / "old", "mmpretrain", tensors, _use_new_zipfile_serialization=False)
    torch.save({"state_dict": tensors, "args": Namespace(lr=1.0)}, tmp_path / "args")
    for path in (old, tmp_path / "args"):
        got = load_mmpretrain(path).state_dict()
        assert all(torch.equal(got[name], want[name]) for name in want)
    half = checkpoints.write(tmp_path / "half", "mmpretrain", {key: value.half() for key, value in tensors.items()})
    for name, value in load_mmpretrain(half).state_dict().items():
        assert torch.equal(value, want[name].half().float()), name


class HistoryBuffer:
    """A copy of mmengine's class, which is not installed here: arrays, and methods of its own."""

    def __init__(self) -> None:
        self._log_history = np.array([0.5, 0.25])
        self._statistics_methods = {"mean": self.mean}

    def mean(self) -> float:
        return float(self._log_history.mean())


@pytest.mark.parametrize("zipped", [True, False])
def test_logs_in_mmengines_checkpoints_are_passed_over(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published files of mmselfsup have them: its publishing tool only removed the optimizer."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for owner in (HistoryBuffer, HistoryBuffer.mean):
        monkeypatch.setattr(owner, "__module__", module.__name__)
    tensors = checkpoints.tensors("mmpretrain", "pretraining")
    hub = {"log_scalars": {"train/loss": HistoryBuffer()}, "runtime_info": {"lr": np.float64(1e-3)}}
    content = {"state_dict": tensors, "message_hub": hub, "meta": {"epoch": 300}}
    torch.save(content, tmp_path / "file", _use_new_zipfile_serialization=zipped)
    if zipped:
        refused = set(torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "file"))
        assert {"mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr"} <= refused
    monkeypatch.undo()
    assert torch.equal(load_mmpretrain(tmp_path / "file").mask_token, tensors["backbone.mask_token"])


@pytest.mark.parametrize("head", ["head.head.", "head.predictor.fc."])
def test_names_of_mmselfsup(head: str, tmp_path: Path) -> None:
    for kind, today in (("pretraining", "neck.fc."), ("fine_tuned", "head.fc.")):
        tensors = checkpoints.tensors("mmpretrain", kind)
        before = {
            key.replace(today, head).replace("backbone.ln2.", "backbone.fc_norm."): t for key, t in tensors.items()
        }
        assert before.keys() != tensors.keys()
        file = read(checkpoints.write(tmp_path / kind, "mmpretrain", before))
        assert file.tensors.keys() == tensors.keys()
        assert all(torch.equal(file.tensors[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["beside", "inside"])
def test_code_in_a_checkpoint_does_not_run(where: str, zipped: bool, tmp_path: Path) -> None:
    tensors: dict[str, Any] = checkpoints.tensors("slowfast", "pretraining")
    content = {"model_state": tensors | ({"x": Hostile(tmp_path / "ran")} if where == "inside" else {})}
    content |= {"cfg": Hostile(tmp_path / "ran")} if where == "beside" else {}
    torch.save(content, tmp_path / "file", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        WeightsError, match=r"holds more than tensors \((posix|nt)\.mkdir\), which is not loaded"
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
        with pytest.raises(WeightsError, match="holds no weights"):
            read(path)
    torch.save({3: torch.ones(1)}, path)
    with pytest.raises(WeightsError, match="holds no weights"):
        read(path)
    itself: dict[str, Any] = {}
    itself["model"] = itself
    torch.save(itself, path)
    with pytest.raises(WeightsError, match="holds no weights"):
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


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    return read(path).tensors


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_may_share_and_repeat_their_storage(zipped: bool, tmp_path: Path) -> None:
    """Each storage is counted once: of tied weights, of slices of one tensor, and of a number that is expanded."""
    whole, one = torch.arange(30_000.0).reshape(30, 1000), torch.full((1,), 0.5)
    want = {
        "q": whole[:10],
        "k": whole[10:20],
        "v": whole[20:],
        "qkv": whole,
        "tied": whole.T,
        "gamma": one.expand(1000),
        "pos_embed": whole[:1].expand(400, 1000),
    }
    torch.save({"model": want}, tmp_path / "file", _use_new_zipfile_serialization=zipped)
    assert sum(tensor.nbytes for tensor in want.values()) > 4 * (tmp_path / "file").stat().st_size
    got = tensors_of(tmp_path / "file")
    assert got.keys() == want.keys() and all(torch.equal(got[key], want[key]) for key in want)


def test_weights_may_be_nested_wrapped_and_beside_an_optimizer(tmp_path: Path) -> None:
    want = {"cls_token": torch.arange(3.0), "blocks.0.norm1.weight": torch.ones(2)}
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    rest = {"optimizer": optimizer.state_dict(), "epoch": 3, "args": Namespace(output_dir=Path("/runs"))}
    for name, content in {
        "alone": want,
        "nested": {"model": {"state_dict": want}},
        "parameters": {"module": {key: nn.Parameter(value) for key, value in want.items()}},
        "parallel": {"state_dict": {f"module._orig_mod.{key}": value for key, value in want.items()}},
        "checkpoint.pth.tar": {"model": want, **rest},
    }.items():
        torch.save(content, tmp_path / name)
        got = tensors_of(tmp_path / name)
        assert got.keys() == want.keys() and all(torch.equal(got[key], want[key]) for key in want), name


def test_what_a_file_is_decides_its_content_and_not_its_name(tmp_path: Path) -> None:
    want = {"cls_token": torch.arange(3.0)}
    safetensors.torch.save_file(want, tmp_path / "file.bin")
    torch.save(want, tmp_path / "file.zip")
    for name in ("file.bin", "file.zip"):
        assert torch.equal(tensors_of(tmp_path / name)["cls_token"], want["cls_token"])


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
        (lambda weight: weight.fill_(float("nan")), "holds NaN or infinity"),
        (lambda weight: weight.double() * 1e300, "holds NaN or infinity"),
        (lambda weight: weight.to(torch.int8), "holds int8 instead of floating-point numbers"),
        (lambda weight: weight > 0, "holds bool instead of"),
        (lambda weight: weight.to(torch.complex64), "holds complex64 instead of"),
    ],
)
def test_numbers_that_no_training_can_start_from(change: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    tensors = checkpoints.tensors("slowfast", "pretraining")
    tensors["pos_embed"] = change(tensors["pos_embed"])
    with pytest.raises(WeightsError, match=f"pos_embed {message}"):
        load_slowfast(checkpoints.write(tmp_path / "file", "slowfast", tensors))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_numbers_of_any_precision_are_taken(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {key: value.to(dtype) for key, value in checkpoints.tensors("slowfast", "pretraining").items()}
    got = load_slowfast(checkpoints.write(tmp_path / "file", "slowfast", tensors))
    assert torch.equal(got.encoder.cls_token, tensors["cls_token"].float())
    assert got.encoder.cls_token.dtype == torch.float32


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


def test_the_normalisation_is_read_from_timms_configuration(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"cls_token": torch.ones(1)}, file)
    assert read(tmp_path).normalisation is None
    config = tmp_path / "config.json"
    for content in ({}, {"pretrained_cfg": {"tag": "mae"}}, {"architectures": ["BeitModel"]}):
        config.write_text(json.dumps(content))
        assert read(tmp_path).normalisation is None
    stated = {"mean": [0.5, 0.25, 0], "std": [0.5, 0.125, 1]}
    for content in ({"pretrained_cfg": stated}, stated):
        config.write_text(json.dumps(content))
        for path in (tmp_path, file):
            assert read(path).normalisation == Normalisation((0.5, 0.25, 0.0), (0.5, 0.125, 1.0))


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
