"""Checkpoints: safetensors and JSON, independent of ZeRO stage and world size, written atomically.

    checkpoints/step-00001000/
      part-00000.safetensors   some parameters' "weight/NAME", "exp_avg/NAME", "exp_avg_sq/NAME", one file per rank;
                               with an average of the weights in fine-tuning also "ema/NAME"
      state.json               step, counters, the identity of the run and its recipe
      files.json               size and SHA-256 of each file above; written last

`pipeline.checkpoints.saver` writes them. A start uses the newest valid one; an invalid one is reported and skipped. If
there are some but none is valid, the run refuses to start. docs/reference/checkpoints.md has the guarantees.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.checkpoints.sealing import Shapes, plain, seal, shapes_in
from shards.files import parse_json
from shards.secrets import masked_values
from shards.terminal import note
from shards.text import one_line

if TYPE_CHECKING:
    from pipeline.cluster.world import World  # loads DeepSpeed, which reading a checkpoint does not need

VERSION = 1
AVERAGE = "ema"  # besides a weight and its moments, if the run has one, the moving average of the weight
STATE, FILES = "state.json", "files.json"

# Errors that malformed content raises
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, SafetensorError)


class CheckpointError(Exception):
    """A checkpoint cannot be used or written. The message names it and the remedy."""


@dataclass(frozen=True)
class Facts:
    """The contents of a checkpoint besides its tensors; all JSON values.

    Attributes:
        step: steps completed, which is also the position in the sample plan.
        counters: further state that decides the next step (`pipeline.train.state.counters`).
        identity: the identity of the run, the same in all its attempts.
        recipe: the recipe of the run, to rebuild the model.
    """

    step: int
    counters: dict[str, Any]
    identity: dict[str, Any]
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk.

    Attributes:
        shapes: the shapes of its tensors by name, "weight/NAME".
    """

    folder: Path
    facts: Facts
    shapes: Shapes

    def weights(self, part: str = "weight") -> dict[str, Tensor]:
        """Return the model's state dict, fp32, on the CPU; or another part of the state under the same names."""
        prefix = f"{part}/"
        with self.tensors() as tensors:
            return {name.removeprefix(prefix): tensors[name] for name in tensors.names if name.startswith(prefix)}

    def tensors(self) -> "Tensors":
        """Return all its tensors, which are read on access, in a `with` block."""
        return Tensors(self.folder)


class Tensors:
    """The files of a checkpoint as one mapping from names, "weight/NAME", to tensors on the CPU."""

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self._file_of: dict[str, Any] = {}
        for part in _parts(folder):
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


def folder_of(checkpoints: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return checkpoints / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(folder.name.removeprefix("step-"))


def folders(checkpoints: Path) -> list[Path]:
    """Return all checkpoints, valid or not, the oldest first."""
    return sorted(checkpoints.glob(f"step-{'[0-9]' * 8}"))


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*"))


def newest(
    checkpoints: Path,
    report: Callable[[str], None],
    world: "World | None" = None,
    check: Callable[[Checkpoint], None] = lambda found: None,
) -> Checkpoint | None:
    """Return the newest valid checkpoint, None if there never was one. Calls `report` for invalid ones.

    Args:
        check: raises CheckpointError, on all ranks alike, for a checkpoint that the caller cannot use.
        world: the ranks, if they call this together. Then each checks a share of the files, all get the same result,
            and rank 0 reports.

    Raises:
        CheckpointError: there are checkpoints and none is valid, or there is something else in their place.
    """
    if os.path.lexists(checkpoints) and not checkpoints.is_dir():
        raise CheckpointError(f"{checkpoints} is not a folder: move it away, or choose another run.dir")
    candidates = folders(checkpoints)
    if world:
        candidates = world.from_first(candidates)
    for candidate in reversed(candidates):
        try:
            found = read(candidate, world)
            check(found)
            return found
        except CheckpointError as error:
            if world is None or world.rank == 0:
                report(f"skipping a damaged checkpoint: {error}")
    if candidates:
        raise CheckpointError(
            f"{checkpoints}: none of its {len(candidates)} checkpoints is valid; restore one, "
            "or choose another run.dir to start from the beginning"
        )
    return None


def chosen(run: Path, step: int | None) -> Checkpoint:
    """Return a run's checkpoint of a step, or its newest valid one.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    checkpoints = run / "checkpoints"
    if step is None:
        found = newest(checkpoints, report=note)
        if found is None:
            raise CheckpointError(f"{run} has no checkpoint yet: train to its first run.save_every, or check the path")
        return found
    asked = folder_of(checkpoints, step)
    if not asked.is_dir():
        steps = ", ".join(str(step_of(folder)) for folder in folders(checkpoints))
        raise CheckpointError(f"{run} has no checkpoint of step {step}: it has {steps or 'none'}")
    return read(asked)


def read(folder: Path, world: "World | None" = None) -> Checkpoint:
    """Open one checkpoint and verify every byte of it; for `world`, see `newest`.

    Raises:
        CheckpointError: a file is missing, superfluous, or not the one that was written; the format is newer; or the
            content is not valid in a checkpoint.
    """
    rank, size = (world.rank, world.size) if world else (0, 1)
    facts, problem = None, None
    tensors: list[tuple[str, tuple[int, ...]]] = []
    try:
        facts, tensors = _read(folder, rank, size)
    except CheckpointError as error:
        problem = str(error)
    except _UNREADABLE as error:
        what = str(error) if type(error) in (OSError, ValueError) else repr(error)
        problem = f"{folder}: {one_line(what[:300])}"
    outcomes = world.gather((facts, tensors, problem)) if world else [(facts, tensors, problem)]
    for _, _, problem in outcomes:
        if problem:
            raise CheckpointError(problem)
    facts, _, _ = outcomes[0]
    assert facts
    tensors = [tensor for _, of_rank, _ in outcomes for tensor in of_rank]
    if len(dict(tensors)) < len(tensors):
        raise CheckpointError(f"{folder} contains a tensor twice")
    return Checkpoint(folder, facts, dict(tensors))


def _read(folder: Path, rank: int, size: int) -> tuple[Facts, list[tuple[str, tuple[int, ...]]]]:
    """Verify state.json and every `size`-th part. Return the facts of the one and the tensors' shapes of the other."""
    seals = parse_json(plain(folder / FILES).read_bytes())
    parts = [part.name for part in _parts(folder)]
    if seals.keys() != {*parts, STATE}:
        raise CheckpointError(f"{folder} has other files than were written")
    for name in (STATE, *parts[rank::size]):
        if seal(folder / name) != seals[name]:
            raise CheckpointError(f"{folder / name} is not what was written")
    state = parse_json((folder / STATE).read_bytes())
    version = state.pop("version")
    if version != VERSION:
        raise CheckpointError(f"{folder} has format version {version}, this program reads {VERSION}")
    facts = Facts(**masked_values(state))  # checkpoints of earlier versions may contain secrets
    if type(facts.step) is not int or facts.step != step_of(folder):
        raise CheckpointError(f"{folder} contains the checkpoint of step {facts.step}")
    for name in ("counters", "identity", "recipe"):
        if not isinstance(getattr(facts, name), dict):
            raise CheckpointError(f"{folder / STATE}: its {name} are not an object")
    return facts, [shape for part in parts[rank::size] for shape in shapes_in(folder / part)]
