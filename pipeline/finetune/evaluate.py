"""Measure accuracy on validation images, each counted once for any number of ranks, and the confusion table."""

import csv
import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F

from pipeline.cluster.phases import Phases
from pipeline.cluster.world import World
from pipeline.data.labels import Int64s
from pipeline.device import to_device
from pipeline.finetune.config import LabelledData
from pipeline.metrics import TOP, hits
from pipeline.pixels import Statistics, normalise
from pipeline.report.report import Metrics
from pipeline.sections import Run
from pipeline.train.engine import Engine
from pipeline.validation import ValidationImages
from shards.manifest import Manifest
from shards.text import excerpt, one_line

PICTURED = 40  # most classes in a picture
_NONE, _RIGHT, _WRONG = 242, (48, 98, 200), (196, 78, 24)  # colours of a cell: no image, and all images of its row


class Validation:
    """The validation images of a run, with fixed centre crops. All ranks call every method together.

    Args:
        manifest: manifest of the images.
        labels: labels of all images, (n,).
        classes: number of classes.
        data, run: settings of the run.
        statistics: normalisation of the model's inputs.
        micro_batch: inputs that a rank computes at once.
        world, phases: those of the run.
    """

    def __init__(
        self,
        manifest: Manifest,
        labels: Int64s,
        classes: int,
        data: LabelledData,
        run: Run,
        statistics: Statistics,
        micro_batch: int,
        world: World,
        phases: Phases,
    ) -> None:
        crop = data.validation_crop
        self._images = ValidationImages(manifest, data, micro_batch, run.seed, world, phases, crop)
        self._statistics = statistics
        self._labels, self._classes, self._world = torch.from_numpy(labels), classes, world

    def chance(self) -> float:
        """Return the accuracy of always predicting the most frequent class."""
        samples = self._images.samples
        return float(self._labels[:samples].bincount().max() / samples)

    def measure(self, engine: Engine) -> tuple[Metrics, NDArray[np.int64]]:
        """Return loss, top-1 and top-5 accuracy with the number of bad images, and the confusion table.

        Returns:
            The table is int64 (classes, classes): the number of images of each class (row) by predicted class (column).

        Raises:
            DataError: no image can be used.
        """
        device, classes = self._world.device, self._classes
        sums = torch.zeros(1 + len(TOP), dtype=torch.float64, device=device)
        table = torch.zeros(classes * classes, dtype=torch.float64, device=device)
        with engine.evaluating():
            for batch in self._images.batches():
                labels = to_device(self._labels[torch.from_numpy(batch.request.ids)], device)
                logits = engine.predict(normalise(batch.inputs, engine.dtype, self._statistics)).float()
                good, weights = batch.weights > 0, batch.weights.double()
                losses = F.cross_entropy(logits, labels, reduction="none").double()
                counted = torch.where(good[:, None], logits, torch.nan)  # which is not a hit
                sums += torch.cat([(losses * weights).sum()[None], hits(counted, labels)])
                table.index_add_(0, labels * classes + logits.argmax(1), weights)
        (loss, top1, top5), bad = self._images.means(sums, table.sum())
        confusion = self._world.sum(table).cpu().numpy().astype(np.int64).reshape(classes, classes)
        return {"val_loss": loss, "val_top1": top1, "val_top5": top5, "val_bad_samples": bad}, confusion


def as_csv(confusion: NDArray[np.int64], names: Sequence[str]) -> bytes:
    """Return the confusion table as CSV: a row for each class with the predicted classes of its images."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")  # names may contain line breaks
    writer.writerow(["class", *names])
    writer.writerows([name, *row] for name, row in zip(names, confusion.tolist(), strict=True))
    return text.getvalue().encode()


def draw_table(confusion: NDArray[np.int64], names: Sequence[str]) -> NDArray[np.uint8]:
    """Draw the confusion table, one row per class: darker for a larger share of the row, blue where correct.

    Returns:
        uint8 (height, width, 3).
    """
    names = [one_line(excerpt(name)) for name in names]
    font = ImageFont.load_default(12)
    cell, margin = 36, 12 + math.ceil(max(map(font.getlength, names)))
    side = margin + cell * len(names)
    sheet = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(sheet)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    for row, name in enumerate(names):
        pen.text((margin - 6, margin + cell * row + cell // 2), name, "black", font, anchor="rm")
        column = Image.new("RGB", (margin - 6, cell), "white")
        ImageDraw.Draw(column).text((0, cell // 2), name, "black", font, anchor="lm")
        sheet.paste(column.rotate(90, expand=True), (margin + cell * row, 0))
        for taken, share in enumerate(shares[row]):
            left, top = margin + cell * taken, margin + cell * row
            full = np.array(_RIGHT if taken == row else _WRONG)
            shade = (_NONE + (full - _NONE) * share).round().astype(int)
            pen.rectangle((left, top, left + cell - 2, top + cell - 2), tuple(shade.tolist()))
            if count := confusion[row, taken]:
                middle, ink = (left + cell // 2 - 1, top + cell // 2 - 1), "white" if share > 0.5 else "black"
                pen.text(middle, str(count), ink, font, anchor="mm")
    return np.asarray(sheet)
