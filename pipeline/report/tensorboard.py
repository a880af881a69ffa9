"""Write TensorBoard's event files, without a thread: SummaryWriter's ends at its first error and loses data."""

import io
import json
import socket
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.api_pb2 import DATA_TYPE_FLOAT64, MetricName
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from pipeline.files import AppendedFile, Writing
from pipeline.report.charts import TRAINING, curve_of
from pipeline.report.histogram import Histogram

# By which runs can be ranked: TensorBoard's table of hyper-parameters shows their last values ...
RESULTS = ("val_loss", "val_top1", "probe_linear", "probe_knn", "loss")
# ... beside the settings of these sections
COMPARED = ("model", "mask", "target", "augment", "optim")
# ... these first, and the others by name
FIRST = frozenset(
    {
        "model.name",
        "model.decoder",
        "mask.kind",
        "mask.ratio",
        "target.kind",
        "optim.lr",
        "optim.epochs",
        "optim.batch_size",
        "optim.layer_decay",
    }
)
_NUMBERS = frozenset({"optim.clip", "optim.average", "augment.randaugment"})  # or null; other settings are text or null


class TensorBoard:
    """A `Board` that writes event files.

    TensorBoard draws curves into one chart where they have the same tag in several folders, which it calls runs. So
    the curves of training lie in `folder`, and all others in folders of their names below it.

    Args:
        folder: folder of the run's event files, one per attempt and curve.
        writing: counts failed writes.
        first: hides what earlier attempts wrote from this step on; None: hides nothing.
    """

    def __init__(self, folder: Path, writing: Writing, first: int | None = None) -> None:
        self._folder, self._writing, self._first = folder, writing, first
        self._name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"  # read in order of names
        self._files: dict[str, AppendedFile] = {}
        self._open(TRAINING)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Board`."""
        summaries = defaultdict(list)
        for metric, value in values.items():
            curve = curve_of(metric)
            summaries[curve.name].append(summary.scalar(curve.chart, value))  # type: ignore[no-untyped-call]
        for name, of_curve in summaries.items():
            self._add(step, *of_curve, curve=name)

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """See `Board`."""
        shown = [
            summary.histogram_raw(  # type: ignore[no-untyped-call]
                name,
                float(one.edges[0]),
                float(one.edges[-1]),
                int(one.counts.sum()),
                one.sum,
                one.squares,
                one.edges[1:].tolist(),
                one.counts.tolist(),
            )
            for name, one in histograms.items()
        ]
        self._add(step, *shown)

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """See `Board`."""
        self._add(step, summary.image(name, pixels, dataformats="HWC"))  # type: ignore[no-untyped-call]

    def animation(self, step: int, name: str, gif: bytes, size: tuple[int, int]) -> None:
        """See `Board`. Browsers play an image that is a GIF."""
        height, width = size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        self._add(step, Summary(value=[Summary.Value(tag=name, image=image)]))

    def recipe(self, recipe: Mapping[str, Mapping[str, Any]]) -> None:
        """Show the recipe as text and, beside the run's results, as hyper-parameters."""
        text = "".join(f"    {line}\n" for line in yaml.safe_dump(recipe, sort_keys=False).splitlines())
        settings = {f"{section}.{key}": value for section in COMPARED for key, value in recipe.get(section, {}).items()}
        unset = [key for key in _NUMBERS if key in settings and settings[key] is None]
        compared = {
            key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
            for key, value in settings.items()
            if key not in unset
        }
        table, *session = summary.hparams(compared, {})  # type: ignore[no-untyped-call]
        shown = summary.text("recipe", text)  # type: ignore[no-untyped-call]
        self._add(0, shown, _with_columns(table, unset), *session)

    def flush(self) -> None:
        """See `Board`."""
        for file in self._files.values():
            file.flush()

    def close(self) -> None:
        """See `Board`."""
        self.flush()

    def _open(self, curve: str) -> None:
        """Begin the file of a curve."""
        folder = self._folder if curve == TRAINING else self._folder / curve
        self._files[curve] = AppendedFile(folder / self._name, self._writing)
        events = [Event(file_version="brain.Event:2")]
        if self._first is not None:
            events.append(Event(step=self._first, session_log=SessionLog(status=SessionLog.START)))
        self._append(curve, *events)

    def _add(self, step: int, *summaries: Summary, curve: str = TRAINING) -> None:
        if curve not in self._files:
            self._open(curve)
        self._append(curve, *(Event(step=step, summary=summary) for summary in summaries))

    def _append(self, curve: str, *events: Event) -> None:
        records = io.BytesIO()
        writer = RecordWriter(records)
        for event in events:
            event.wall_time = time.time()
            writer.write(event.SerializeToString())
        self._files[curve].append(records.getvalue())


def _with_columns(table: Summary, unset: Sequence[str]) -> Summary:
    """Return the description of a table of hyper-parameters with further columns: for `unset` numbers, and `RESULTS`.

    TensorBoard takes the columns for all runs from one of them, so every run names them all. torch's own description
    knows only curves of the run's own folder.
    """
    plugin = table.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    for key in unset:
        content.experiment.hparam_infos.add(name=key, type=DATA_TYPE_FLOAT64)
    for column in content.experiment.hparam_infos:
        column.differs = column.name in FIRST  # by which TensorBoard orders them, and then by name
    for metric in RESULTS:
        curve = curve_of(metric)
        group = "" if curve.name == TRAINING else curve.name
        content.experiment.metric_infos.add(name=MetricName(group=group, tag=curve.chart))
    plugin.content = content.SerializeToString()
    return table
