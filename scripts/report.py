"""What a run has achieved so far, and where to look.

    python scripts/report.py RUN

Example:

    python scripts/report.py runs/vit_base_300e
"""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from shards.terminal import Parser, note, prepare, say


def main() -> int:
    """Exit status 0, or 1 when RUN holds no run."""
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, help="a run.dir of scripts/pretrain.py")
    prepare()
    run: Path = parser.parse_args().run
    try:
        logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n")[:-1]]
        last = logged[-1]
    except (OSError, IndexError):
        note(f"error: {run} holds no run that has logged a step")
        return 1

    say(f"run            {run}: step {last['step']}, training loss {last['loss']:.4f}")
    validated = [line for line in logged if "val_loss" in line]
    if validated and (run / "baselines.json").exists():
        baselines = json.loads((run / "baselines.json").read_text())
        loss = validated[-1]["val_loss"]
        table = Table("validation loss", "", "against the mean target")
        for name, value in (
            ("predicting zero", baselines["zero"]),
            ("predicting the training set's mean target", baselines["mean"]),
            *([("model, before training", baselines["untrained"])] if "untrained" in baselines else []),
            (f"model, after {validated[-1]['step']} steps", loss),
        ):
            table.add_row(name, f"{value:.4f}", f"{value / baselines['mean'] - 1:+.1%}")
        Console(highlight=False, markup=False, soft_wrap=True).print(table)
    pictures = sorted((run / "pictures").glob("*.png"))
    if pictures:
        say(f"picture        {pictures[-1]}")
    say(f"curves         tensorboard --logdir {run}/tensorboard")
    return 0


if __name__ == "__main__":
    sys.exit(main())
