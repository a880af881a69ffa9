"""Reading weights in all their formats. test_weights_files.py has the files that are refused."""

import json
import sys
import types
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from golden import checkpoints
from torch import nn

from model.convert import load_mmpretrain, load_slowfast
from model.weights import Normalisation, read


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_numbers_of_any_precision_are_taken(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {key: value.to(dtype) for key, value in checkpoints.tensors("slowfast", "pretraining").items()}
    got = load_slowfast(checkpoints.write(tmp_path / "file", "slowfast", tensors))
    assert torch.equal(got.encoder.cls_token, tensors["cls_token"].float())
    assert got.encoder.cls_token.dtype == torch.float32


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
