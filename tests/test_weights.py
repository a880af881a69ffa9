"""Reading weights files: every format, and that a wrong or hostile one is one error that runs nothing."""

import json
import pickle
import sys
import types
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

from model.convert import load_mmpretrain, load_slowfast
from model.weights import Normalisation, WeightsError, read


def test_files_of_every_format_are_read_alike(tmp_path: Path) -> None:
    """torch.save's archives and the plain pickles before them, half precision, and the command line of a run."""
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
    """As mmengine's, which is not installed here: arrays, and methods of its own."""

    def __init__(self) -> None:
        self._log_history = np.array([0.5, 0.25])
        self._statistics_methods = {"mean": self.mean}

    def mean(self) -> float:
        return float(self._log_history.mean())


@pytest.mark.parametrize("zipped", [True, False])
def test_logs_in_mmengines_checkpoints_are_passed_over(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mmselfsup's published files have them: its publishing tool removed no more than the optimizer."""
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
    path.write_text("not weights")
    with pytest.raises(WeightsError, match="is damaged, or no weights file"):
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


NO_WEIGHTS: dict[str, Callable[[], torch.Tensor]] = {
    "meta": lambda: torch.zeros(2, 2, device="meta"),
    "sparse": lambda: torch.eye(2).to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
}


@pytest.mark.filterwarnings("ignore")  # torch's, of kinds that it will drop one day
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_tensors_of_other_kinds_are_no_weights(kind: str, tmp_path: Path) -> None:
    """torch loads them without running code, and could then not copy them."""
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
    with pytest.raises(WeightsError, match=r"config\.json is no configuration of timm's") as error:
        read(tmp_path)
    assert "\n" not in str(error.value)
