"""Checkpoints: damage of any file is found, the previous one is used, and nothing ever starts over silently."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
from launching import losses, pretrain
from safetensors import SafetensorError
from scripting import Hostile

from pipeline.checkpoints.checkpoint import CheckpointError, newest, read
from pipeline.checkpoints.sealing import seal


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps with checkpoints at 2, 4 and 6."""
    run = tmp_path_factory.mktemp("runs") / "run"
    pretrain(shards, run, "run.max_steps=6", "run.save_every=2")
    return run


def copy_of(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run" / "checkpoints"


def flip(file: Path, at: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "flipped": flip,
    "its last byte flipped": lambda file: flip(file, -1),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "emptied": lambda file: file.write_bytes(b""),
    "lengthened": lambda file: file.write_bytes(file.read_bytes() + b" 1"),
    "deleted": lambda file: file.unlink(),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "older": lambda file: file.write_bytes((file.parents[1] / "step-00000002" / file.name).read_bytes()),
}

FOLDER_DAMAGE = {
    "a part too much": lambda folder: shutil.copy(folder / "part-00000.safetensors", folder / "part-00001.safetensors"),
    "an older part too much": lambda folder: shutil.copy(
        folder.parent / "step-00000002" / "part-00000.safetensors", folder / "part-00001.safetensors"
    ),
    "renamed part": lambda folder: (folder / "part-00000.safetensors").rename(folder / "part-00001.safetensors"),
    "all of an older one": lambda folder: shutil.copytree(folder.parent / "step-00000002", folder, dirs_exist_ok=True),
    "empty": lambda folder: [file.unlink() for file in folder.iterdir()],
    "a file": lambda folder: (shutil.rmtree(folder), folder.write_bytes(b"")),
    "another step in state.json": lambda folder: (folder / "state.json").write_text(
        (folder / "state.json").read_text().replace('"step": 6', '"step": 5')
    ),
    "nothing in files.json": lambda folder: (folder / "files.json").write_text("{}"),
    "no seal of state.json": lambda folder: (folder / "files.json").write_text(
        json.dumps({"part-00000.safetensors": seal(folder / "part-00000.safetensors")})
    ),
}


@pytest.mark.parametrize("damage", sorted(DAMAGE))
@pytest.mark.parametrize("name", ["part-00000.safetensors", "state.json", "files.json"])
def test_a_damaged_file_is_reported_and_the_checkpoint_before_is_taken(
    run: Path, tmp_path: Path, name: str, damage: str
) -> None:
    checkpoints = copy_of(run, tmp_path)
    DAMAGE[damage](checkpoints / "step-00000006" / name)
    said: list[str] = []
    found = newest(checkpoints, said.append)
    assert found is not None and found.facts.step == 4
    assert len(said) == 1 and "step-00000006" in said[0]


@pytest.mark.parametrize("damage", sorted(FOLDER_DAMAGE))
def test_a_damaged_folder_is_reported_and_the_checkpoint_before_is_taken(
    run: Path, tmp_path: Path, damage: str
) -> None:
    checkpoints = copy_of(run, tmp_path)
    FOLDER_DAMAGE[damage](checkpoints / "step-00000006")
    said: list[str] = []
    found = newest(checkpoints, said.append)
    assert found is not None and found.facts.step == 4
    assert len(said) == 1 and "step-00000006" in said[0]


@pytest.mark.parametrize("name", ["part-00000.safetensors", "state.json", "files.json"])
def test_a_pickle_under_any_name_runs_no_code(run: Path, tmp_path: Path, name: str) -> None:
    """This holds even where its checksum is right."""
    victim = tmp_path / "victim"
    pickled = pickle.dumps(Hostile(victim))
    pickle.loads(pickled)
    victim.rmdir()  # it works, then
    folder = copy_of(run, tmp_path) / "step-00000006"
    (folder / name).write_bytes(pickled)
    if name != "files.json":
        files = json.loads((folder / "files.json").read_text())
        (folder / "files.json").write_text(json.dumps(files | {name: seal(folder / name)}))
    with pytest.raises((CheckpointError, SafetensorError)):
        read(folder).weights()
    assert not victim.exists()


def test_a_run_whose_newest_checkpoint_is_damaged_still_ends_the_same(shards: Path, run: Path, tmp_path: Path) -> None:
    checkpoints = copy_of(run, tmp_path)
    DAMAGE["flipped"](checkpoints / "step-00000006" / "part-00000.safetensors")
    pretrain(shards, checkpoints.parent, "run.max_steps=6", "run.save_every=2")
    assert losses(checkpoints.parent) == losses(run)
    ends = [read(folder / "step-00000006").weights() for folder in (checkpoints, run / "checkpoints")]
    assert ends[0].keys() == ends[1].keys()
    assert all(bool((ends[0][name] == ends[1][name]).all()) for name in ends[0])


def test_the_checkpoint_just_written_is_never_pruned_for_a_damaged_later_one(
    shards: Path, run: Path, tmp_path: Path
) -> None:
    checkpoints = copy_of(run, tmp_path)
    DAMAGE["flipped"](checkpoints / "step-00000006" / "part-00000.safetensors")
    pretrain(shards, checkpoints.parent, "run.max_steps=5", "run.save_every=100", "run.keep=1")
    assert [folder.name for folder in checkpoints.iterdir()] == ["step-00000005"]


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"state.json": 3}', "[" * 100_000])
def test_nonsense_in_its_files_is_a_damaged_checkpoint(run: Path, tmp_path: Path, text: str) -> None:
    checkpoints = copy_of(run, tmp_path)
    (checkpoints / "step-00000006" / "files.json").write_text(text)
    (checkpoints / "step-00000006" / "state.json").write_text("[]")
    found = newest(checkpoints, lambda said: None)
    assert found is not None and found.facts.step == 4


def test_no_valid_checkpoint_is_a_refusal_and_none_at_all_a_start(shards: Path, run: Path, tmp_path: Path) -> None:
    assert newest(tmp_path / "nothing", print) is None
    checkpoints = copy_of(run, tmp_path)
    for folder in checkpoints.glob("step-*"):
        (folder / "files.json").unlink()
    with pytest.raises(CheckpointError, match="none of its 3 checkpoints is valid"):
        pretrain(shards, checkpoints.parent, "run.max_steps=6")


def test_a_half_written_checkpoint_is_not_seen_and_is_written_over(shards: Path, run: Path, tmp_path: Path) -> None:
    checkpoints = copy_of(run, tmp_path)
    (checkpoints / "step-00000006").rename(checkpoints / ".step-00000006")
    (checkpoints / ".step-00000006" / "files.json").unlink()
    pretrain(shards, checkpoints.parent, "run.max_steps=6", "run.save_every=2")
    assert losses(checkpoints.parent) == losses(run)
    assert sorted(folder.name for folder in checkpoints.iterdir()) == [f"step-0000000{step}" for step in (2, 4, 6)]


def test_a_newer_format_is_not_guessed_at(run: Path, tmp_path: Path) -> None:
    folder = copy_of(run, tmp_path) / "step-00000006"
    state = json.loads((folder / "state.json").read_text()) | {"version": 99}
    (folder / "state.json").write_text(json.dumps(state))
    files = json.loads((folder / "files.json").read_text())
    (folder / "files.json").write_text(json.dumps(files | {"state.json": seal(folder / "state.json")}))
    with pytest.raises(CheckpointError, match="format version 99"):
        read(folder)
