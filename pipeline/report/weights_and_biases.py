"""Weights & Biases as a board. Its own environment variables (WANDB_PROJECT, WANDB_MODE, ...) hold."""

import io
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from numpy.typing import NDArray

from pipeline.files import replace
from pipeline.report.charts import flat_name
from pipeline.report.histogram import Histogram

ID = "wandb.id"  # in `run.dir`


class WeightsAndBiases:
    """A `Board`; the attempts of a run are one run there. Calls may raise whatever `wandb` does.

    Args:
        folder: `run.dir`, whose name is that of the run.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / ID
        if not path.is_file():
            replace(path, uuid.uuid4().hex.encode())
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "maskfeat"),
            name=folder.name,
            id=path.read_text(),
            resume="allow",
            dir=folder,
            settings=wandb.Settings(console="off", silent=True),
        )
        # Its own count of steps may not go back, as a run does that resumes from its last checkpoint
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Board`."""
        self._run.log({"step": step} | {flat_name(metric): value for metric, value in values.items()})

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """See `Board`."""
        shown = {name: wandb.Histogram(np_histogram=(one.counts, one.edges)) for name, one in histograms.items()}
        self._run.log({"step": step} | shown)

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """See `Board`."""
        self._run.log({"step": step, name: wandb.Image(pixels)})

    def animation(self, step: int, name: str, gif: bytes, size: tuple[int, int]) -> None:
        """See `Board`."""
        self._run.log({"step": step, name: wandb.Video(io.BytesIO(gif), format="gif")})

    def recipe(self, recipe: Mapping[str, Mapping[str, Any]]) -> None:
        """See `Board`."""
        self._run.config.update(dict(recipe), allow_val_change=True)

    def flush(self) -> None:
        """Do nothing: `wandb` writes at once."""

    def close(self) -> None:
        """See `Board`."""
        self._run.finish()
