"""The interface of a run's reports. Rank 0 has a `Monitor`; the others are silent."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.report.histogram import Histogram

Metrics = dict[str, float]


class Report(Protocol):
    """Takes the lines, numbers and pictures of the loop and its tasks. Each rank has one."""

    def say(self, text: str) -> None:
        """Print a line for the operator."""
        ...

    def advance(self, step: int) -> None:
        """Show that `step` steps are done."""
        ...

    def log(self, step: int, metrics: Metrics) -> None:
        """Record the numbers of a step."""
        ...

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """Show histograms by name."""
        ...

    def quarantine(self, bad: list[dict[str, Any]]) -> None:
        """Record bad samples, by step."""
        ...

    def picture(self, step: int, name: str, picture: NDArray[np.uint8]) -> None:
        """Save a picture, (height, width, 3), under this name."""
        ...

    def animation(self, step: int, name: str, frames: Sequence[NDArray[np.uint8]]) -> None:
        """Save an animation of frames, (height, width, 3), under this name."""
        ...

    def baselines(self, step: int, losses: Mapping[str, float]) -> None:
        """Show the losses of constant predictors, with which to compare the validation loss."""
        ...

    def complete(self, commands: Sequence[str]) -> None:
        """Print what a run that is complete has come to, and the commands to run next."""
        ...

    def flush(self) -> None:
        """Retry writes that failed before."""
        ...

    def close(self) -> None:
        """Write everything that is pending, and end."""
        ...


class Silence:
    """The `Report` of all ranks but the first, which does nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def advance(self, step: int) -> None:
        """Do nothing."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Do nothing."""

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
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
