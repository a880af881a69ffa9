"""Save in the background: training continues as soon as a snapshot is in host memory.

A thread of each rank writes that rank's part; the threads agree over a process group of their own. A folder is written
under another name and renamed once every rank's part is on disk, so that an interrupted save never leaves a checkpoint.
A save that fails leaves earlier checkpoints alone, and is reported; the next one tries again.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import timedelta
from math import inf, prod
from pathlib import Path
from threading import Thread
from typing import Any, Self, TypeVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, distributed

from model.writing import share
from pipeline.checkpoints.checkpoint import FILES, STATE, VERSION, CheckpointError, Facts, folder_of, folders, step_of
from pipeline.checkpoints.sealing import Shapes, seal
from pipeline.cluster.world import World
from shards.files import fsync

DEADLINE = 600  # seconds that ranks wait for each other's disks, and for the previous save
GRACE = 20  # seconds for a save in progress when the run ends with an error
RESERVE = 2**26  # bytes that a save leaves free, for the run's other files

Value = TypeVar("Value")


class Saver:
    """Writes a run's checkpoints. All ranks build one and call `start` and `wait` together.

    Args:
        folder: the folder of the checkpoints, shared by all ranks.
        shapes: shapes of this rank's share of the states, by name; over all ranks, every name occurs once.
        keep: number of newest checkpoints to keep.
        keep_every: checkpoints whose step is a multiple of this are kept, too.
        minutes: minutes after which a save is overdue; None: never.

    Raises:
        CheckpointError: the share does not fit into host memory.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        shapes: Shapes,
        *,
        keep: int,
        keep_every: int | None,
        minutes: float | None = None,
    ) -> None:
        self._folder, self._world, self._keep, self._keep_every = folder, world, keep, keep_every
        self._group: Any = None
        if world.size > 1:
            self._group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=DEADLINE))
        self._snapshot = _allocate(shapes, pin=world.gpu is not None)
        self._thread: Thread | None = None
        self._problem: str | None = None  # the problem of the last save
        self._problems: list[str] = []  # those of all saves
        self._told = 0  # the number of them already returned
        self._lost: Exception | None = None  # ranks can no longer agree
        self._seconds = inf if minutes is None else 60 * minutes
        self._begun = time.monotonic()  # the last save or, before the first one, this attempt of the run

    @property
    def overdue(self) -> bool:
        """Return whether the last save began more than `minutes` ago, by this rank's clock."""
        return time.monotonic() - self._begun > self._seconds

    @property
    def failures(self) -> int:
        """The number of failed saves, the same on every rank."""
        return len(self._problems)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._thread:
            self._thread.join(GRACE)

    def start(self, states: Iterable[tuple[str, Tensor]], facts: Facts) -> None:
        """Copy the states to host memory and start to write them; waits for the previous save.

        Args:
            states: this rank's share, with the shapes given at construction, on any device.

        Raises:
            CheckpointError: the previous save does not end.
        """
        self.wait()
        self._begun = time.monotonic()
        for name, state in states:
            self._snapshot[name].copy_(state, non_blocking=True)
        if self._world.gpu is not None:
            torch.cuda.current_stream().synchronize()
        self._thread = Thread(target=self._run, args=(facts,), name="saver", daemon=True)
        self._thread.start()

    def wait(self) -> str | None:
        """Wait for the save in progress. Return the problem of the last save, if any, the same on all ranks.

        Raises:
            CheckpointError: it does not end.
        """
        if self._thread:
            self._thread.join(DEADLINE)
            if self._thread.is_alive():
                raise CheckpointError(f"{self._folder}: a save has not ended in {DEADLINE} s: check the storage")
            self._thread = None
        if self._lost:
            raise self._lost
        return self._problem

    def problems(self) -> list[str]:
        """Return the problems of saves since the last call. Does not wait."""
        new = self._problems[self._told :]
        self._told += len(new)
        return new

    def _run(self, facts: Facts) -> None:
        try:
            self._problem = None
            self._save(facts)
        except CheckpointError as error:
            self._problem = f"the save of step {facts.step} failed: {error}; the checkpoints before it are intact"
            self._problems.append(self._problem)
        except Exception as error:  # of the process group, when a rank is gone; the main thread raises it
            self._lost = error

    def _save(self, facts: Facts) -> None:
        final = folder_of(self._folder, facts.step)
        partial = self._folder / f".{final.name}"
        sizes = self._gather(sum(tensor.nbytes for tensor in self._snapshot.values()))
        try:
            self._on_first(lambda: self._make_room(partial, sum(sizes)))
            seals = self._together(lambda: self._write_part(partial))
            self._on_first(lambda: self._complete(partial, final, facts, dict(seals)))
        except CheckpointError:
            if self._world.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def _make_room(self, partial: Path, needed: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for leftover in self._folder.glob(".step-*"):  # left by a save or a removal that was killed
            _clear(leftover)
        free = shutil.disk_usage(self._folder).free
        if free < needed + RESERVE:
            raise OSError(
                f"{self._folder} has {free / 1e9:.2f} GB free, but a checkpoint needs {needed / 1e9:.2f} "
                f"and {RESERVE / 1e9:.2f} GB to spare: free space"
            )
        partial.mkdir()

    def _write_part(self, partial: Path) -> tuple[str, dict[str, Any]]:
        part = partial / f"part-{self._world.rank:05d}.safetensors"
        try:
            save_file(self._snapshot, part)
        except SafetensorError as error:  # includes disk errors
            raise OSError(f"{part}: {error}") from error
        share(part)
        fsync(part)
        return part.name, seal(part)

    def _complete(self, partial: Path, final: Path, facts: Facts, seals: dict[str, dict[str, Any]]) -> None:
        state, files = partial / STATE, partial / FILES
        state.write_text(json.dumps({"version": VERSION} | asdict(facts), indent=1))
        fsync(state)
        files.write_text(json.dumps(seals | {STATE: seal(state)}, indent=1))
        fsync(files)
        fsync(partial)
        for other in folders(self._folder):
            if other >= final:  # damaged: they were skipped
                self._remove(other)
        partial.rename(final)
        fsync(self._folder)
        for other in folders(self._folder)[: -self._keep]:
            if not (self._keep_every and step_of(other) % self._keep_every == 0):
                self._remove(other)

    def _remove(self, checkpoint: Path) -> None:
        """Remove a checkpoint; never leaves a partly removed one under its name."""
        hidden = checkpoint.with_name(f".{checkpoint.name}-old")
        checkpoint.rename(hidden)
        _clear(hidden)

    def _on_first(self, work: Callable[[], None]) -> None:
        """Run `work` on rank 0, with `_together`."""
        self._together(work if self._world.rank == 0 else lambda: None)

    def _together(self, work: Callable[[], Value]) -> list[Value]:
        """Run `work` on every rank; return the results in rank order.

        Raises:
            CheckpointError: on all ranks, if the disk failed any of them.
        """
        done: Value | None = None
        problem = None
        try:
            done = work()
        except OSError as error:
            problem = str(error)
        outcomes = self._gather((done, problem))
        for _, problem in outcomes:
            if problem:
                raise CheckpointError(problem)
        return [cast(Value, done) for done, _ in outcomes]

    def _gather(self, value: Value) -> list[Value]:
        if self._group is None:
            return [value]
        values: list[Value | None] = [None] * self._world.size
        distributed.all_gather_object(values, value, self._group)
        return cast(list[Value], values)


def snapshot_bytes(numbers: int, pinned: bool) -> int:
    """Return the bytes of a snapshot of this many numbers; torch rounds pinned memory to powers of two."""
    size = 4 * numbers
    return 2 ** max(0, size - 1).bit_length() if pinned else size


def _allocate(shapes: Shapes, pin: bool) -> dict[str, Tensor]:
    """Allocate float32 tensors of these shapes in one buffer of host memory, since each pinned one takes milliseconds.

    Raises:
        CheckpointError: there is not enough memory.
    """
    sizes = [prod(shape) for shape in shapes.values()]
    try:
        buffer = torch.empty(sum(sizes), dtype=torch.float32, pin_memory=pin).zero_()  # maps it before the first save
    except RuntimeError:
        raise CheckpointError(
            f"this rank's share of a checkpoint, {4 * sum(sizes) / 1e9:.2f} GB, does not fit into the memory of its "
            "node: use more nodes, or give the container more memory"
        ) from None
    parts = torch.split(buffer, sizes)
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _clear(path: Path) -> None:
    """Remove a folder, or a file in its place, as far as possible: NFS keeps files that are open somewhere."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
