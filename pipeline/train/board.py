"""TensorBoard's event file, without a thread: SummaryWriter's ends at the first error, with all that it held."""

import io
import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from pipeline.train.writing import Growing, Writing


class Board:
    """What TensorBoard shows of one life of a run.

    Args:
        folder: of the run's event files, of which each life has its own.
        first: of what earlier lives wrote, this step and those after it are shown no more.
        writing: told what fails.
    """

    def __init__(self, folder: Path, first: int, writing: Writing) -> None:
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"  # read in the order of their names
        self._file = Growing(folder / name, writing)
        begun = SessionLog(status=SessionLog.START)
        self._append(Event(file_version="brain.Event:2"), Event(step=first, session_log=begun))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One point of a curve each."""
        self._add(step, *(summary.scalar(name, value) for name, value in values.items()))  # type: ignore[no-untyped-call]

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """An image, (height, width, 3)."""
        self._add(step, summary.image(name, pixels, dataformats="HWC"))  # type: ignore[no-untyped-call]

    def recipe(self, recipe: Mapping[str, Mapping[str, Any]]) -> None:
        """The settings of each section, as text and as hyper-parameters."""
        text = "".join(f"    {line}\n" for line in yaml.safe_dump(recipe, sort_keys=False).splitlines())
        flat = {
            f"{section}.{key}": value if isinstance(value, bool | int | float | str) else json.dumps(value)
            for section, settings in recipe.items()
            for key, value in settings.items()
        }
        self._add(0, summary.text("recipe", text), *summary.hparams(flat, {}))  # type: ignore[no-untyped-call]

    def flush(self) -> None:
        """Write what waits."""
        self._file.flush()

    def _add(self, step: int, *summaries: Summary) -> None:
        self._append(*(Event(step=step, summary=summary) for summary in summaries))

    def _append(self, *events: Event) -> None:
        records = io.BytesIO()
        writer = RecordWriter(records)
        for event in events:
            event.wall_time = time.time()
            writer.write(event.SerializeToString())
        self._file.append(records.getvalue())
