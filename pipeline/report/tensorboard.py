"""Write TensorBoard's event file, without a thread: SummaryWriter's ends at its first error and loses data."""

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

from pipeline.files import AppendedFile, Writing


class TensorBoard:
    """A `Board` that writes an event file.

    Args:
        folder: folder of the run's event files, one per attempt.
        writing: counts failed writes.
        first: hides what earlier attempts wrote from this step on; None: hides nothing.
    """

    def __init__(self, folder: Path, writing: Writing, first: int | None = None) -> None:
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"  # read in order of names
        self._file = AppendedFile(folder / name, writing)
        events = [Event(file_version="brain.Event:2")]
        if first is not None:
            events.append(Event(step=first, session_log=SessionLog(status=SessionLog.START)))
        self._append(*events)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Board`."""
        self._add(step, *(summary.scalar(name, value) for name, value in values.items()))  # type: ignore[no-untyped-call]

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """See `Board`."""
        self._add(step, summary.image(name, pixels, dataformats="HWC"))  # type: ignore[no-untyped-call]

    def animation(self, step: int, name: str, gif: bytes, size: tuple[int, int]) -> None:
        """See `Board`. Browsers play an image that is a GIF."""
        height, width = size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        self._add(step, Summary(value=[Summary.Value(tag=name, image=image)]))

    def recipe(self, recipe: Mapping[str, Mapping[str, Any]]) -> None:
        """Show the recipe as text and as hyper-parameters."""
        text = "".join(f"    {line}\n" for line in yaml.safe_dump(recipe, sort_keys=False).splitlines())
        flat = {
            f"{section}.{key}": value if isinstance(value, bool | int | float | str) else json.dumps(value)
            for section, settings in recipe.items()
            for key, value in settings.items()
        }
        self._add(0, summary.text("recipe", text), *summary.hparams(flat, {}))  # type: ignore[no-untyped-call]

    def flush(self) -> None:
        """See `Board`."""
        self._file.flush()

    def close(self) -> None:
        """See `Board`."""
        self.flush()

    def _add(self, step: int, *summaries: Summary) -> None:
        self._append(*(Event(step=step, summary=summary) for summary in summaries))

    def _append(self, *events: Event) -> None:
        records = io.BytesIO()
        writer = RecordWriter(records)
        for event in events:
            event.wall_time = time.time()
            writer.write(event.SerializeToString())
        self._file.append(records.getvalue())
