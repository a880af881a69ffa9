"""Boards that reach other machines: a thread talks to them, so that none of them ends or delays the training."""

from collections.abc import Callable, Mapping
from queue import Full, Queue
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.files import tell
from pipeline.report.board import Board
from pipeline.report.histogram import Histogram
from shards.text import one_line

MOST_WAITING = 10_000  # calls; beyond that, what is new is dropped
PATIENCE = 60.0  # seconds for what waits when the run ends


class Background:
    """A `Board` whose calls are made by a thread of its own. What fails is told once until it works again.

    Args:
        name: for the operator.
        make: builds the board, in that thread; where it fails, the run has no such board.
    """

    def __init__(self, name: str, make: Callable[[], Board]) -> None:
        self._name, self._make = name, make
        self._calls: Queue[Callable[[Board], None] | None] = Queue(MOST_WAITING)
        self._full = self._failing = False
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Board`."""
        self._call(lambda board: board.scalars(step, values))

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """See `Board`."""
        self._call(lambda board: board.histograms(step, histograms))

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """See `Board`."""
        self._call(lambda board: board.image(step, name, pixels))

    def animation(self, step: int, name: str, gif: bytes, size: tuple[int, int]) -> None:
        """See `Board`."""
        self._call(lambda board: board.animation(step, name, gif, size))

    def recipe(self, recipe: Mapping[str, Mapping[str, Any]]) -> None:
        """See `Board`."""
        self._call(lambda board: board.recipe(recipe))

    def flush(self) -> None:
        """Do nothing: the thread does what it can at once."""

    def close(self) -> None:
        """Wait until everything is shown, but not for long."""
        self._call(lambda board: board.close())
        if not self._full:
            self._calls.put(None)
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            tell(f"warning: {self._name} does not answer: it does not show the end of this run")

    def _call(self, call: Callable[[Board], None]) -> None:
        if not self._thread.is_alive():
            return
        try:
            self._calls.put_nowait(call)
        except Full:
            if not self._full:
                self._full = True
                tell(f"warning: {self._name} does not keep up, training continues: what is new is not shown there")

    def _work(self) -> None:
        try:
            board = self._make()
        except Exception as error:
            tell(f"warning: {self._name} cannot be used, training continues without it: {one_line(str(error))}")
            return
        while call := self._calls.get():
            try:
                call(board)
            except Exception as error:
                if not self._failing:
                    tell(f"warning: {self._name} fails, training continues: {one_line(str(error))}")
                self._failing = True
            else:
                self._failing = False
