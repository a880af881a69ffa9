"""Report a run to people: a progress line, metrics.jsonl, boards, pictures, config.yaml. Rank 0 only."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as ProgressBar

from pipeline.files import AppendedFile, Writing, json_lines, keep_lines, replace
from pipeline.report.board import Board
from pipeline.report.boards import open_boards
from pipeline.report.histogram import Histogram
from pipeline.report.progress import Progress, Schedule, duration
from pipeline.report.report import Metrics
from pipeline.report.result import next_commands, result
from shards.secrets import masked_values
from shards.terminal import say, shown

_CONSOLE = Path("/dev/stdout")
_FRAME_MS = 250  # duration of a frame: 8 frames of 2 seconds play at about their true speed


def open_monitor(
    folder: Path, name: str, recipe: dict[str, Any], schedule: Schedule, boards: Sequence[str] = ("tensorboard",)
) -> "Monitor":
    """Return the monitor of a run, with the boards of these names; see `Monitor` for the other arguments."""
    writing = Writing()
    opened = open_boards(boards, folder, writing, first=schedule.first + 1)
    return Monitor(folder, name, recipe, schedule, opened, writing)


class Monitor:
    """Writes a run's numbers and pictures under its folder. Failures are printed and counted; training continues.

    Args:
        folder: `run.dir`, existing.
        name: a name for the kind of run.
        recipe: the recipe as plain values, without secrets.
        schedule: the steps of the run; what an earlier attempt wrote after the first one is dropped.
        boards: boards that get the same numbers and pictures.
        writing: counts failed writes, including those of the boards.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        recipe: dict[str, Any],
        schedule: Schedule,
        boards: Sequence[Board],
        writing: Writing,
    ) -> None:
        self._folder, self._schedule, self._boards, self._writing = folder, schedule, boards, writing
        self._progress = Progress(schedule)
        self._views = recipe.get("mask", {}).get("repeats", 1) > 1  # a step counts the masks of its inputs
        self._latest: Metrics = {}  # value of each metric
        self._baselines: Metrics = {}
        step = schedule.first
        self._console = Console()
        metrics, quarantine = folder / "metrics.jsonl", folder / "quarantine.jsonl"
        # The latter counts steps of this attempt, not all completed ones
        for path, last in ((metrics, step), (quarantine, step - 1)):
            with self._writing(path):
                keep_lines(path, last)
        self._metrics, self._quarantine = AppendedFile(metrics, self._writing), AppendedFile(quarantine, self._writing)
        self._bar = ProgressBar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(shown(name), total=schedule.end, completed=step)
        self._bar.start()
        with self._writing(folder / "config.yaml"):
            replace(folder / "config.yaml", yaml.safe_dump(recipe, sort_keys=False).encode())
        if not step:
            for board in self._boards:
                board.recipe(recipe)

    def say(self, text: str) -> None:
        """See `Report`."""
        with self._writing(_CONSOLE):
            if self._bar.disable:
                say(text)
            else:
                self._console.out(shown(text), highlight=False)  # above the progress line, and without markup

    def advance(self, step: int) -> None:
        """Move the progress bar."""
        self._bar.update(self._task, completed=step)

    def log(self, step: int, metrics: Metrics) -> None:
        """Write the numbers of a step everywhere, with the number of failed writes."""
        metrics = metrics | {"failed_writes": self._writing.failures}
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON lacks NaN
        self._metrics.append(json_lines([{"step": step} | finite]))
        seconds_left = self._progress.seconds_left(step)
        for board in self._boards:
            board.scalars(step, metrics | self._progress.numbers(step, seconds_left))
        self._latest |= metrics
        line = _line(metrics, step / self._schedule.steps_per_epoch, seconds_left, self._views)
        self._bar.update(self._task, description=line)
        if self._bar.disable:
            self.say(f"step {step}/{self._schedule.end}  {line}")

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """See `Report`."""
        for board in self._boards:
            board.histograms(step, histograms)

    def quarantine(self, bad: list[dict[str, Any]]) -> None:
        """See `Report`."""
        self._quarantine.append(json_lines(masked_values(bad)))
        first, path = bad[0], self._folder / "quarantine.jsonl"
        self.say(f"skipped {len(bad)} bad samples, see {path}; the first: sample {first['id']}, {first['reason']}")

    def picture(self, step: int, name: str, picture: NDArray[np.uint8]) -> None:
        """Save a picture in pictures/, and show it on the boards under this name."""
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "png")
        with self._writing(self._folder / "pictures"):
            self._keep(f"{_stem(step, name)}.png", file.getvalue())
            for board in self._boards:
                board.image(step, name, picture)

    def animation(self, step: int, name: str, frames: Sequence[NDArray[np.uint8]]) -> None:
        """Save an animation in pictures/ as a GIF, and show it on the boards under this name."""
        file = io.BytesIO()
        first, *others = (Image.fromarray(frame) for frame in frames)
        first.save(file, "gif", save_all=True, append_images=others, duration=_FRAME_MS, loop=0)
        with self._writing(self._folder / "pictures"):
            self._keep(f"{_stem(step, name)}.gif", file.getvalue())
            for board in self._boards:
                board.animation(step, name, file.getvalue(), (first.height, first.width))

    def _keep(self, name: str, content: bytes) -> None:
        folder = self._folder / "pictures"
        folder.mkdir(exist_ok=True)
        replace(folder / name, content)

    def baselines(self, step: int, losses: Mapping[str, float]) -> None:
        """See `Report`."""
        self._baselines |= losses
        for board in self._boards:
            board.scalars(step, {f"baseline/{name}": loss for name, loss in losses.items()})

    def complete(self, commands: Sequence[str]) -> None:
        """See `Report`."""
        seconds, run = self._progress.seconds, self._folder
        lines = result(self._schedule, seconds, self._latest, self._baselines, run)
        for line in (*lines, *next_commands(run, commands)):
            self.say(line)

    def flush(self) -> None:
        """Retry pending writes, since a checkpoint of this step is about to be written."""
        self._metrics.flush()
        self._quarantine.flush()
        for board in self._boards:
            board.flush()

    def close(self) -> None:
        """Write everything that is pending, and end the progress line."""
        self._bar.stop()
        self._metrics.flush()
        self._quarantine.flush()
        for board in self._boards:
            board.close()


def _stem(step: int, name: str) -> str:
    """Return the stem of the file of a picture: of `reconstruction-images` it ends with `-images`."""
    _, dash, of = name.partition("-")
    return f"step-{step:08d}{dash}{of}"


def _line(metrics: Metrics, epoch: float, seconds_left: float | None, views: bool = False) -> str:
    parts = [f"loss {metrics['loss']:.4f}"]
    if "val_loss" in metrics:
        parts.append(f"val {metrics['val_loss']:.4f}")
    if "val_images_loss" in metrics:
        parts.append(f"val of images {metrics['val_images_loss']:.4f}")
    if "val_top1" in metrics:
        parts.append(f"top-1 {metrics['val_top1']:.1%}")
    parts += [
        f"lr {metrics['lr']:.1e}",
        f"grad {metrics['grad_norm']:.3f}",
        _speed(metrics, views),
        f"data {metrics['data_wait']:.0%}",
        f"epoch {epoch:.2f}",
    ]
    if seconds_left is not None:
        parts.append(f"ETA {duration(seconds_left)}")
    return "  ".join(parts)


def _speed(metrics: Metrics, views: bool) -> str:
    inputs = metrics["images_per_second"]
    if "frames_per_second" not in metrics:
        return f"{inputs:,.0f} {'views' if views else 'img'}/s"
    return f"{inputs:,.1f} {'views' if views else 'clips'}/s ({metrics['frames_per_second']:,.0f} frames/s)"
