"""The boards that a run is shown on, by their names in `run.boards`."""

import os
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from pipeline.files import Writing
from pipeline.report.background import Background
from pipeline.report.board import Board
from pipeline.report.tensorboard import TensorBoard
from pipeline.settings import ConfigError


def open_boards(names: Sequence[str], folder: Path, writing: Writing, first: int) -> list[Board]:
    """Return the boards of these names, see `Run.boards`.

    Args:
        names: of boards that can be used, see `check_boards`.
        folder: `run.dir`.
        writing: told what fails.
        first: what earlier attempts showed of this step and those after it is shown again.
    """
    boards: list[Board] = []
    for name in dict.fromkeys(names):
        if name == "tensorboard":
            boards.append(TensorBoard(folder / "tensorboard", writing, first))
        else:
            boards.append(Background(name, partial(_open, name, folder)))
    return boards


def check_boards(names: Sequence[str]) -> None:
    """Raise ConfigError where a board's package is missing, or MLflow's server is not named."""
    for name, package in (("wandb", "wandb"), ("mlflow", "mlflow")):
        if name in names and find_spec(package) is None:
            raise ConfigError(f"run.boards has {name}, which is not installed: pip install 'maskfeat-pipeline[{name}]'")
    if "mlflow" in names and "MLFLOW_TRACKING_URI" not in os.environ:
        raise ConfigError("run.boards has mlflow: name its server in MLFLOW_TRACKING_URI")


def _open(name: str, folder: Path) -> Board:
    """Return the board of an optional package, which is imported here."""
    if name == "wandb":
        from pipeline.report.weights_and_biases import WeightsAndBiases

        return WeightsAndBiases(folder)
    from pipeline.report.mlflow_board import MLflow

    return MLflow(folder)
