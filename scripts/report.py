"""What a run has achieved so far, and where to look.

python scripts/report.py RUN
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.card import number
from pipeline.pretrain.baselines import read_baselines
from pipeline.train.writing import entries


def main() -> int:
    """Exit status 0, or 1 when RUN holds no run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run.dir of scripts/pretrain.py")
    run: Path = parser.parse_args().run
    try:
        logged = list(entries(run / "metrics.jsonl"))
        last = logged[-1]
    except (OSError, IndexError):
        print(f"error: {run} holds no run that has logged a step", file=sys.stderr)
        return 1

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"run            {run}: step {last['step']}, training loss {number(last.get('loss'), '.4f')}")
    validated = [line for line in logged if "val_loss" in line]
    if validated and (baselines := read_baselines(run)):
        loss = validated[-1]["val_loss"]
        table = Table("validation loss", "", "against the mean target")
        for name, value in (
            ("predicting zero", baselines["zero"]),
            ("predicting the training set's mean target", baselines["mean"]),
            *([("model, before training", baselines["untrained"])] if "untrained" in baselines else []),
            (f"model, after {validated[-1]['step']} steps", loss),
        ):
            known = type(value) is float and baselines["mean"]  # a loss that is not finite is logged as null
            table.add_row(name, number(value, ".4f"), f"{value / baselines['mean'] - 1:+.1%}" if known else "")
        console.print(table)
    pictures = sorted((run / "pictures").glob("*.png"))
    if pictures:
        console.print(f"picture        {pictures[-1]}")
    console.print(f"curves         tensorboard --logdir {run}/tensorboard")
    return 0


if __name__ == "__main__":
    sys.exit(main())
