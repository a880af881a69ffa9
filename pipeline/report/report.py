"""What a run tells the people who watch it. Rank 0 has a `Monitor`; the others say nothing."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Metrics = dict[str, float]


class Report(Protocol):
    """Where the loop and its tasks put lines, numbers and pictures. Each rank has one."""

    def say(self, text: str) -> None:
        """Print a line for the operator."""
        ...

    def advance(self, step: int) -> None:
        """Show that so many steps are done."""
        ...

    def log(self, step: int, metrics: Metrics) -> None:
        """Write down the numbers of a step."""
        ...

    def quarantine(self, bad: list[dict[str, Any]]) -> None:
        """Write down bad samples, by step."""
        ...

    def picture(self, step: int, name: str, picture: NDArray[np.uint8]) -> None:
        """Keep a picture, (height, width, 3), of this name."""
        ...

    def animation(self, step: int, name: str, frames: Sequence[NDArray[np.uint8]]) -> None:
        """Keep an animation, of frames (height, width, 3), of this name."""
        ...

    def baselines(self, step: int, losses: Mapping[str, float]) -> None:
        """Show the losses of constant predictors, beside which the validation loss has to be read."""
        ...

    def complete(self, commands: Sequence[str]) -> None:
        """Print what a run that is complete has come to, and the commands to run next."""
        ...

    def flush(self) -> None:
        """Try once more to write what could not be written before."""
        ...

    def close(self) -> None:
        """Write what waits, and end."""
        ...


class Silence:
    """The `Report` of all ranks but the first."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def advance(self, step: int) -> None:
        """Do nothing."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Do nothing."""

    def quarantine(self, bad: list[dict[str, Any]]) -> None:
        """Do nothing."""

    def picture(self, step: int, name: str, picture: NDArray[np.uint8]) -> None:
        """Do nothing."""

    def animation(self, step: int, name: str, frames: Sequence[NDArray[np.uint8]]) -> None:
        """Do nothing."""

    def baselines(self, step: int, losses: Mapping[str, float]) -> None:
        """Do nothing."""

    def complete(self, commands: Sequence[str]) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
