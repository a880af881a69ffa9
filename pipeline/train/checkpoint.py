"""Checkpoints: safetensors and JSON, independent of ZeRO stage and world size, complete or not there at all.

    checkpoints/step-00001000/
      part-00000.safetensors   some parameters' "weight/NAME", "exp_avg/NAME", "exp_avg_sq/NAME", one file a rank
      state.json               step, counters, what the run is (identity) and its recipe
      files.json               size and SHA-256 of each file above; written last

A folder is written under another name and renamed. On start the newest valid one wins; an invalid one is reported
and passed over; where there are some and none is valid, the run refuses to start afresh.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shards.files import fsync, sha256_of

if TYPE_CHECKING:
    from pipeline.train.world import World  # loads DeepSpeed, which reading a checkpoint does not need

VERSION = 1
PARTS = ("weight", "exp_avg", "exp_avg_sq")  # of every parameter: its fp32 master and Adam's moments


class CheckpointError(Exception):
    """A checkpoint cannot be used. The message names it and the remedy."""


@dataclass(frozen=True)
class Facts:
    """What a checkpoint says beside its tensors; all JSON.

    Attributes:
        step: steps completed, which is also the place in the sample plan.
        counters: what else decides the next step (`pipeline.train.state.counters`).
        identity: what the run is; every life of it must have the same.
        recipe: the recipe as it was, to rebuild the model from.
    """

    step: int
    counters: dict[str, Any]
    identity: dict[str, Any]
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    facts: Facts

    def weights(self) -> dict[str, Tensor]:
        """The model's state dict, fp32, on the CPU."""
        prefix = f"{PARTS[0]}/"
        with self.tensors() as tensors:
            return {name.removeprefix(prefix): tensors[name] for name in tensors.names if name.startswith(prefix)}

    def tensors(self) -> "Tensors":
        """All its tensors, read when asked for; to be used in a `with`."""
        return Tensors(self.folder)


class Tensors:
    """The files of a checkpoint as one mapping from names, "weight/NAME", to tensors on the CPU."""

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self._file_of: dict[str, Any] = {}
        for part in sorted(folder.glob("part-*.safetensors")):
            file = self._stack.enter_context(safe_open(part, framework="pt"))
            self._file_of |= dict.fromkeys(file.keys(), file)
        self.names = list(self._file_of)

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file_of[name].get_tensor(name)
        return tensor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stack.close()


def save(folder: Path, world: "World", tensors: Mapping[str, Tensor], facts: Facts, *, keep: int) -> Path:
    """Write the checkpoint of `facts.step` under `folder`, and keep the newest `keep`. All ranks call this together.

    Args:
        tensors: this rank's share; over all ranks every name once.
    """
    final = folder / f"step-{facts.step:08d}"
    partial = folder / f".{final.name}"
    if world.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    world.barrier()
    part = partial / f"part-{world.rank:05d}.safetensors"
    problem = None
    try:
        save_file(dict(tensors), part)
        sealed = _seal(part)
    except (OSError, SafetensorError) as error:
        problem, sealed = f"{part}: {error}", {}
    written = world.gather((part.name, sealed, problem))
    if problems := [problem for _, _, problem in written if problem]:
        raise CheckpointError(f"{problems[0]}: make room or mend it and start again; the checkpoint before is intact")
    files = {name: sealed for name, sealed, _ in written}

    if world.rank == 0:
        state = partial / "state.json"
        state.write_text(json.dumps({"version": VERSION} | asdict(facts), indent=1))
        files[state.name] = _seal(state)
        (partial / "files.json").write_text(json.dumps(files, indent=1))
        _seal(partial / "files.json")
        shutil.rmtree(final, ignore_errors=True)  # an invalid one that was passed over
        partial.rename(final)
        fsync(folder)
        others = sorted(folder.glob("step-*"))
        later = [other for other in others if other > final]  # damaged: they were passed over
        for other in others[: -keep - len(later)] + later:
            shutil.rmtree(other)
    world.barrier()
    return final


def newest(folder: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """The newest valid checkpoint under `folder`, None if there never was one. Tells `report` of invalid ones.

    Raises:
        CheckpointError: there are checkpoints and none is valid.
    """
    candidates = sorted(folder.glob("step-*"), reverse=True)
    for candidate in candidates:
        try:
            return read(candidate)
        except CheckpointError as error:
            report(f"passing over a damaged checkpoint: {error}")
    if candidates:
        raise CheckpointError(
            f"{folder}: none of its {len(candidates)} checkpoints is valid; restore one, "
            "or choose another run.dir to start afresh"
        )
    return None


def check_identity(found: Checkpoint, identity: dict[str, Any]) -> None:
    """Make sure that a checkpoint belongs to the run at hand.

    Raises:
        CheckpointError: it does not; names what differs.
    """
    differing = [
        f"{key} was {found.facts.identity.get(key)}, now {identity.get(key)}"
        for key in sorted(found.facts.identity.keys() | identity.keys())
        if found.facts.identity.get(key) != identity.get(key)
    ]
    if differing:
        raise CheckpointError(
            f"{found.folder} belongs to another run ({'; '.join(differing)}): set these back, or choose another run.dir"
        )


def read(folder: Path) -> Checkpoint:
    """Open one checkpoint and check every byte of it.

    Raises:
        CheckpointError: a file is missing or not the one that was written, or the format is a newer one.
    """
    try:
        files = json.loads((folder / "files.json").read_text())
        for name, seal in files.items():
            if _digest(folder / name) != seal:
                raise CheckpointError(f"{folder / name} is not what was written")
        state = json.loads((folder / "state.json").read_text())
        version = state.pop("version")
        if version != VERSION:
            raise CheckpointError(f"{folder} has format version {version}, this program reads {VERSION}")
        return Checkpoint(folder, Facts(**state))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}: {error!r}") from error


def _seal(path: Path) -> dict[str, Any]:
    """Make a file durable; its size and SHA-256."""
    fsync(path)
    return _digest(path)


def _digest(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
