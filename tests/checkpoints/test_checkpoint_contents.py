"""Checkpoints with right checksums and wrong contents: they are skipped for the previous one, with one line."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import assert_same_weights, launch, pretrain, small_recipe
from safetensors.torch import load_file, save_file
from scripting import run_script

from pipeline.checkpoints.checkpoint import Checkpoint, CheckpointError, Facts, chosen, newest, read
from pipeline.checkpoints.sealing import seal
from pipeline.train.resume import changed_engine, check_contents
from pipeline.train.state import check_counters

Tensors = dict[str, torch.Tensor]
PART = "part-00000.safetensors"
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def original(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps with checkpoints at 2 and 4."""
    run = tmp_path_factory.mktemp("runs") / "run"
    pretrain(shards, run, "run.max_steps=4", "run.save_every=2", f"data.validation={shards}")
    return run


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def reseal(folder: Path) -> None:
    """Give every file of a checkpoint the checksum that it has."""
    files = {path.name: seal(path) for path in folder.iterdir() if path.name != "files.json"}
    (folder / "files.json").write_text(json.dumps(files))


def tamper(folder: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = load_file(folder / PART)
    change(tensors)
    save_file(tensors, folder / PART)


def state(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    found = json.loads((folder / "state.json").read_text())
    change(found)
    (folder / "state.json").write_text(json.dumps(found))


def put(name: str, tensor: torch.Tensor) -> Change:
    return lambda folder: tamper(folder, lambda of: of.update({name: tensor}))


def drop(name: str) -> Change:
    return lambda folder: tamper(folder, lambda of: of.pop(name))


def spoil(name: str, value: float) -> Change:
    return lambda folder: tamper(folder, lambda of: of[name].view(-1)[:1].fill_(value))


def say(**fields: Any) -> Change:
    return lambda folder: state(folder, lambda of: of.update(fields))


def count(**counters: Any) -> Change:
    return lambda folder: state(folder, lambda of: of["counters"].update(counters))


def write(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


WEIGHT, MEAN, SQUARES = (f"{part}/encoder.norm.bias" for part in ("weight", "exp_avg", "exp_avg_sq"))

# Whatever model it is of
UNREADABLE: dict[str, tuple[Change, str]] = {
    "not safetensors": (write(PART, b"nothing"), "SafetensorError"),
    "a header of 2^60 bytes": (write(PART, b"\0" * 7 + b"\x10{}"), "SafetensorError"),
    "bfloat16": (put(WEIGHT, torch.ones(32, dtype=torch.bfloat16)), "torch.bfloat16"),
    "integers": (put(MEAN, torch.ones(32, dtype=torch.int64)), "torch.int64"),
    "truths": (put(SQUARES, torch.ones(32, dtype=torch.bool)), "torch.bool"),
    "no numbers": (put(WEIGHT, torch.ones(0)), "(0,)"),
    "NaN": (spoil(WEIGHT, float("nan")), "not finite"),
    "infinity": (spoil(MEAN, float("inf")), "not finite"),
    "negative infinity": (spoil(WEIGHT, float("-inf")), "not finite"),
    "negative squares": (spoil(SQUARES, -1.0), "negative"),
    "a name twice": (
        lambda folder: save_file({WEIGHT: torch.ones(32)}, folder / "part-00001.safetensors"),
        "contains a tensor twice",
    ),
    "a step in text": (say(step="4"), "of step 4"),
    "another step": (say(step=3), "of step 3"),
    "a step that is a float": (say(step=4.0), "of step 4.0"),
    "counters in a list": (say(counters=[1]), "its counters are not an object"),
    "a recipe in text": (say(recipe="demo"), "its recipe are not an object"),
    "a field too much": (say(more=1), "more"),
    "no identity": (lambda folder: state(folder, lambda of: of.pop("identity")), "identity"),
    "a list for a state": (write("state.json", b"[]"), "TypeError"),
    "a deep state": (write("state.json", b'{"a":' * 10**5), "nested too deep"),
    "a state that says two things": (write("state.json", b'{"step": 4, "step": 4}'), "a name twice"),
    "nesting that only Python could read": (
        lambda folder: state(folder, lambda of: of["identity"].update(x=json.loads("[" * 100 + "]" * 100))),
        "nested too deep",
    ),
    "bytes for a state": (write("state.json", b'{"\xff": 1}'), "UnicodeDecodeError"),
}

# For the model at hand
UNFIT: dict[str, tuple[Change, str]] = {
    "a missing weight": (drop(WEIGHT), f"{WEIGHT} is missing, and the model has (32,)"),
    "a missing moment": (drop(MEAN), f"{MEAN} is missing, and the model has (32,)"),
    "another shape": (put(WEIGHT, torch.ones(31)), f"{WEIGHT} is (31,), and the model has (32,)"),
    "a moment of one number": (put(MEAN, torch.ones(1)), f"{MEAN} is (1,), and the model has (32,)"),
    "a scalar moment": (put(SQUARES, torch.ones(())), f"{SQUARES} is (), and the model has (32,)"),
    "a tensor too much": (put("weight/x", torch.ones(3)), "weight/x is (3,), and the model has no such tensor"),
    "an average too much": (put("ema/encoder.norm.bias", torch.ones(32)), "ema/encoder.norm.bias is (32,)"),
    "a negative step of Adam's": (count(adam_step=-1), "its adam_step is not a number of steps up to 4"),
    "a later step of Adam's": (count(adam_step=5), "its adam_step is not"),
    "a step of Adam's in text": (count(adam_step="4"), "its adam_step is not"),
    "a step of Adam's that is true": (count(adam_step=True), "its adam_step is not"),
    "no step of Adam's": (say(counters={"scaler": {}}), "its adam_step is not"),
    "no scaler": (count(scaler=None), "its scaler is not an object"),
    "a scaler in text": (count(scaler={"cur_scale": "1"}), "its scaler's cur_scale is not a number"),
    "a scale of nothing": (count(scaler={"cur_scale": 0.0}), "cur_scale is not more than 0"),
    "an endless scale": (count(scaler={"cur_scale": float("inf")}), "cur_scale is not a number"),
    "half an iteration": (count(scaler={"cur_iter": 0.5}), "cur_iter is not a number"),
    "an unknown field": (count(scaler={"code": 1}), "its scaler is not an object"),
}


@pytest.mark.parametrize("case", sorted(UNREADABLE))
def test_a_sealed_checkpoint_of_nonsense_is_passed_over(run: Path, case: str) -> None:
    change, why = UNREADABLE[case]
    folder = run / "checkpoints" / "step-00000004"
    change(folder)
    reseal(folder)
    said: list[str] = []
    found = newest(run / "checkpoints", said.append)
    assert found and found.facts.step == 2
    assert len(said) == 1 and "step-00000004" in said[0] and why in said[0] and "\n" not in said[0]
    with pytest.raises(CheckpointError, match="step-00000004"):
        chosen(run, 4)


@pytest.mark.parametrize("case", sorted(UNFIT))
def test_a_sealed_checkpoint_that_does_not_fit_the_run_is_told(run: Path, case: str) -> None:
    change, why = UNFIT[case]
    shapes = read(run / "checkpoints" / "step-00000002").shapes
    folder = run / "checkpoints" / "step-00000004"
    check_contents(read(folder), shapes)
    change(folder)
    reseal(folder)
    with pytest.raises(CheckpointError) as caught:
        check_contents(read(folder), shapes)
    assert str(caught.value).startswith(str(folder)) and why in str(caught.value)


@pytest.mark.parametrize("case", ["a missing weight", "a later step of Adam's"])
def test_a_run_takes_the_checkpoint_before_one_that_does_not_fit_it(
    shards: Path, run: Path, original: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    change, why = UNFIT[case]
    folder = run / "checkpoints" / "step-00000004"
    change(folder)
    reseal(folder)
    pretrain(shards, run, "run.max_steps=4", "run.save_every=2", f"data.validation={shards}")
    out = capfd.readouterr().out
    (said,) = [line for line in out.splitlines() if "skipping" in line]
    assert "step-00000004" in said and why in said and "steps 2 to 4 of" in out
    assert_same_weights(run, original)


@pytest.mark.parametrize("name", [PART, "state.json", "files.json"])
def test_a_pipe_or_a_device_in_a_checkpoint_is_not_waited_for(run: Path, name: str) -> None:
    path = run / "checkpoints" / "step-00000004" / name
    for make in (os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to("x")):
        path.unlink() if path.is_symlink() or not path.is_dir() else path.rmdir()
        make(path)
        said: list[str] = []
        found = newest(run / "checkpoints", said.append)
        assert found and found.facts.step == 2
        assert len(said) == 1 and f"{path.parent}: {name} is missing, or not a regular file" in said[0]


def test_the_tensors_that_are_checked_are_those_that_are_read(run: Path) -> None:
    folder = run / "checkpoints" / "step-00000004"
    before = read(folder).weights()
    (folder / PART).rename(folder / "part-of-another-name")
    reseal(folder)
    found = read(folder)
    weights = found.weights()
    assert before.keys() == weights.keys() == {name[7:] for name in found.shapes if name.startswith("weight/")}
    assert all(torch.equal(before[name], weights[name]) for name in before)


def test_links_to_files_elsewhere_are_followed(run: Path, tmp_path: Path) -> None:
    path = run / "checkpoints" / "step-00000004" / PART
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert read(path.parent).facts.step == 4


def test_two_ranks_agree_that_a_checkpoint_does_not_fit(shards: Path, run: Path) -> None:
    """This holds whichever rank checked the damaged part."""
    folder = run / "checkpoints" / "step-00000004"
    tensors = load_file(folder / PART)
    save_file({name: tensors.pop(name) for name in (MEAN, SQUARES)}, folder / "part-00001.safetensors")
    save_file(tensors, folder / PART)
    reseal(folder)
    assert read(folder).shapes == read(folder.with_name("step-00000002")).shapes
    save_file({MEAN: torch.ones(32)}, folder / "part-00001.safetensors")
    reseal(folder)
    said = launch(shards, run, "run.max_steps=4", "run.save_every=2")
    assert said.count("skipping a damaged checkpoint") == 1 and "steps 2 to 4 of" in said
    assert f"{SQUARES} is missing" in said


def test_a_checkpoint_of_another_run_is_refused_and_not_passed_over(shards: Path, run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"belongs to another run \(model\.options was"):
        pretrain(shards, run, "model.options={embed_dim: 32, depth: 3, num_heads: 1}", "run.max_steps=4")


def test_counters_as_runs_save_them_pass() -> None:
    check_counters({"adam_step": 0, "scaler": {}}, 4)
    scaler = {"cur_scale": 65536.0, "cur_iter": 3, "last_overflow_iter": -1, "cur_hysteresis": 2}
    check_counters({"adam_step": 4, "scaler": scaler}, 4)
    check_counters({"adam_step": 4, "scaler": {"cur_scale": 65536}}, 4)


def test_a_precision_that_changed_between_lives_is_noted_once(
    shards: Path, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = ["engine.precision=bf16", "engine.zero_stage=2"]
    before = small_recipe(shards, run).engine
    pretrain(shards, run, "run.max_steps=5", f"data.validation={shards}")
    assert "engine." not in capfd.readouterr().out
    pretrain(shards, run, "run.max_steps=6", f"data.validation={shards}", *changes)
    notes = [line for line in capfd.readouterr().out.splitlines() if line.startswith("note: engine.")]
    was = f"engine.zero_stage was {before.zero_stage}, now 2"
    if before.precision != "bf16":
        was += f"; engine.precision was {before.precision}, now bf16"
    assert notes == [f"note: {was}: rounding differs from here on"]


def test_an_engine_setting_that_a_checkpoint_does_not_know_stood_at_its_default(shards: Path, run: Path) -> None:
    engine = small_recipe(shards, run).engine.model_dump(mode="json")
    del engine["tf32"]
    found = Checkpoint(run, Facts(4, {}, {}, {"engine": engine}), {})
    assert changed_engine(found, small_recipe(shards, run)) == []
    (note,) = changed_engine(found, small_recipe(shards, run, "engine.tf32=true"))
    assert note == "engine.tf32 was False, now True: rounding differs from here on"


@pytest.mark.parametrize("case", ["a missing weight", "another shape", "a tensor too much"])
def test_export_of_a_checkpoint_that_does_not_fit_its_recipe_is_one_line(
    run: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = run / "checkpoints" / "step-00000004"
    UNFIT[case][0](folder)
    reseal(folder)
    assert run_script(monkeypatch, "export.py", run, tmp_path / "out") == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {folder}: its recipe and its weights do not match")
