"""The interface of programs that show curves and pictures of runs. TensorBoard is one (tensorboard.py)."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.report.histogram import Histogram


class Board(Protocol):
    """Shows one attempt of a run. An error of its own does not end the training."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to the curve of each metric, where `charts.curve_of` says."""
        ...

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """Show histograms by name, if it can."""
        ...

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Show an image, (height, width, 3)."""
        ...

    def animation(self, step: int, name: str, gif: bytes, size: tuple[int, int]) -> None:
        """Show a GIF file of this height and width in pixels."""
        ...

    def recipe(self, recipe: Mapping[str, Mapping[str, Any]]) -> None:
        """Show the settings of a run by section and key, without secrets."""
        ...

    def flush(self) -> None:
        """Retry writes that failed before."""
        ...

    def close(self) -> None:
        """Write everything that is pending, and end."""
        ...
