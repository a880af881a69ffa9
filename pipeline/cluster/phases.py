"""Name the current activity of the training loop in profiles, and watch it, so that no wait lasts forever.

A rank that is stopped, disconnected or gone leaves the others waiting in a collective, which may take half an hour to
give up, or never does. So every rank watches itself.
"""

import faulthandler
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from torch.profiler import record_function

from pipeline.cluster.witness import dismiss
from shards.terminal import note

NAMES = ("data wait", "target", "forward", "backward", "optimizer", "agreement", "logging", "validation", "save")

_TICK = 1.0  # seconds
_LAST_WORDS = 10.0  # seconds


class Phases:
    """Names the current phase of this rank; within its context, ends the process if one phase lasts too long.

    Time is counted in ticks of a thread, so a process that was suspended as a whole does not end when it continues.

    Args:
        folder: `run.dir`, in which stacks-rank{r}.txt is written when this ends the process.
        rank: this rank.
        deadline: seconds that one phase may take.

    Attributes:
        step: the step in progress.
    """

    def __init__(self, folder: Path, rank: int, deadline: float) -> None:
        self.step = 0
        self._folder, self._rank, self._deadline = folder, rank, deadline
        self._name = "start"
        self._entered = 0  # number of phases so far
        self._over = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Run the block as the phase `name`, one of NAMES."""
        before = self._name
        self._enter(name)
        try:
            with record_function(name):
                yield
        finally:
            self._enter(before)

    def _enter(self, name: str) -> None:
        self._name = name
        self._entered += 1

    def _watch(self) -> None:
        seen, ticks = -1, 0
        while not self._over.wait(_TICK):
            ticks = ticks + 1 if self._entered == seen else 0
            seen = self._entered
            if ticks * _TICK >= self._deadline:
                self._give_up()

    def _give_up(self) -> None:
        telling = threading.Thread(target=self._tell, name="last words", daemon=True)
        telling.start()
        telling.join(_LAST_WORDS)  # the storage, or the reader of this process's output, may hang
        dismiss()
        os._exit(1)

    def _tell(self) -> None:
        known = f"rank {self._rank} has been in {self._name!r} of step {self.step} for {self._deadline:g} s"
        stacks = self._folder / f"stacks-rank{self._rank}.txt"
        note(
            f"error: {known} (run.deadline): another rank or the storage does not answer; stacks go to {stacks}; "
            "this process ends; the same command resumes from the last checkpoint"
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            stacks.unlink(missing_ok=True)  # it may be a link
            with stacks.open("w") as file:
                print(known, file=file, flush=True)
                faulthandler.dump_traceback(file)
        except OSError:
            faulthandler.dump_traceback(sys.stderr)
