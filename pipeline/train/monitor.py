"""What a person watches: a progress line, metrics.jsonl, TensorBoard, pictures. Rank 0 only."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

Metrics = dict[str, float]


class Monitor:
    """Writes a run's numbers and pictures under its folder.

    Args:
        folder: `run.dir`, existing.
        recipe: as plain values.
        step: the step resumed from; what an earlier life of the run wrote after it is dropped.
        total: steps in all.
    """

    def __init__(self, folder: Path, recipe: dict[str, Any], step: int, total: int) -> None:
        self._folder = folder
        self._total = total
        self._console = Console()
        keep_lines(folder / "metrics.jsonl", step)
        keep_lines(folder / "quarantine.jsonl", step - 1)  # of steps that were run, not those done
        self._metrics = (folder / "metrics.jsonl").open("a", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("pre-training", total=total, completed=step)
        self._progress.start()
        if not step:
            self._show_recipe(recipe)

    def say(self, text: str) -> None:
        """A line for the operator."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def advance(self, step: int) -> None:
        """Move the progress bar."""
        self._progress.update(self._task, completed=step)

    def log(self, step: int, metrics: Metrics) -> None:
        """The numbers of a step, everywhere."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
        self._metrics.write(json.dumps({"step": step} | finite) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        text = _line(metrics)
        self._progress.update(self._task, description=text)
        if self._progress.disable:
            self.say(f"step {step}/{self._total}  {text}")

    def quarantine(self, bad: list[dict[str, Any]]) -> None:
        """Bad samples, by step."""
        path = self._folder / "quarantine.jsonl"
        with path.open("a") as file:
            file.writelines(json.dumps(sample) + "\n" for sample in bad)
        first = bad[0]
        self.say(f"left out {len(bad)} bad samples, see {path}; the first: sample {first['id']}, {first['reason']}")

    def picture(self, step: int, picture: NDArray[np.uint8]) -> None:
        """Keep a sheet in pictures/ and show it in TensorBoard."""
        path = self._folder / "pictures" / f"step-{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path)
        self._board.add_image("reconstruction", picture, step, dataformats="HWC")

    def levels(self, step: int, losses: Metrics) -> None:
        """Losses of constant predictors, beside which the validation loss has to be read."""
        for name, value in losses.items():
            self._board.add_scalar(f"baseline/{name}", value, step)

    def flush(self) -> None:
        """Bring everything said so far to disk, as a checkpoint of this step is about to be."""
        self._board.flush()

    def close(self) -> None:
        """Flush everything."""
        self._progress.stop()
        self._metrics.close()
        self._board.close()

    def _show_recipe(self, recipe: dict[str, Any]) -> None:
        """The recipe as hyper-parameters."""
        text = yaml.safe_dump(recipe, sort_keys=False)
        self._board.add_text("recipe", "".join(f"    {line}\n" for line in text.splitlines()), 0)
        flat = {
            f"{section}.{key}": value if isinstance(value, bool | int | float | str) else json.dumps(value)
            for section, settings in recipe.items()
            for key, value in settings.items()
        }
        self._board.add_hparams(flat, {}, run_name=".")


def _line(metrics: Metrics) -> str:
    parts = [f"loss {metrics['loss']:.4f}"]
    if "val_loss" in metrics:
        parts.append(f"val {metrics['val_loss']:.4f}")
    parts += [
        f"lr {metrics['lr']:.1e}",
        f"grad {metrics['grad_norm']:.3f}",
        f"{metrics['images_per_second']:,.0f} img/s",
        f"data {metrics['data_wait']:.0%}",
    ]
    return "  ".join(parts)


def keep_lines(path: Path, step: int) -> None:
    """Cut a JSONL file down to its whole lines up to `step`, as a run that resumes there has to."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:  # torn by a crash
            break
    partial = path.with_suffix(".partial")
    partial.write_text("".join(kept))
    partial.rename(path)
