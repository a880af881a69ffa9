"""MLflow as a board, on the server that MLFLOW_TRACKING_URI names, in the experiment of MLFLOW_EXPERIMENT_NAME."""

import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from numpy.typing import NDArray

from pipeline.files import replace
from pipeline.report.charts import flat_name
from pipeline.report.histogram import Histogram

ID = "mlflow.id"  # in `run.dir`


class MLflow:
    """A `Board`; the attempts of a run are one run there. Calls may raise whatever `mlflow` does.

    Args:
        folder: `run.dir`, whose name is that of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._client = MlflowClient()
        path = folder / ID
        if path.is_file():
            self._run = path.read_text()
            self._client.update_run(self._run, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "maskfeat")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        self._run = self._client.create_run(experiment, run_name=folder.name).info.run_id
        replace(path, self._run.encode())

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Board`."""
        now = int(1000 * time.time())
        metrics = [Metric(flat_name(metric), value, now, step) for metric, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """Do nothing: MLflow does not show histograms."""

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """See `Board`."""
        self._client.log_image(self._run, pixels, key=name, step=step)

    def animation(self, step: int, name: str, gif: bytes, size: tuple[int, int]) -> None:
        """Keep it as an artifact: MLflow plays none beside its curves."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"step-{step:08d}.gif"
            path.write_bytes(gif)
            self._client.log_artifact(self._run, str(path), name)

    def recipe(self, recipe: Mapping[str, Mapping[str, Any]]) -> None:
        """See `Board`."""
        settings = {
            f"{section}.{key}": value if isinstance(value, str) else json.dumps(value)
            for section, of_section in recipe.items()
            for key, value in of_section.items()
        }
        self._client.log_batch(self._run, params=[Param(key, value) for key, value in settings.items()])

    def flush(self) -> None:
        """Do nothing: each call is written at once."""

    def close(self) -> None:
        """See `Board`."""
        self._client.set_terminated(self._run)
