"""What pre-training was worth: the table and the plots of scripts/reproduce_small.sh.

    python scripts/compare.py FOLDER

FOLDER holds probe/KIND/*.json and finetune/KIND-SEED of the kinds scratch and hog, and of pixels, light and local if
these were pre-trained, too. Writes results.png there.

Example, after scripts/reproduce_small.sh /data/flowers reproduction:

    python scripts/compare.py reproduction
"""

import statistics
import sys
from pathlib import Path

import matplotlib as mpl
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipeline.files import entries
from shards.files import parse_json
from shards.terminal import Parser, note, prepare, say

mpl.use("Agg")
from matplotlib import pyplot as plt  # reads which backend to use

KINDS = {
    "scratch": "no pre-training",
    "hog": "HOG",
    "pixels": "pixels",
    "light": "HOG, visible patches only",
    "local": "HOG at four scales, visible patches only",
}
Curve = dict[int, float]  # top-1 by step


def probed(folder: Path) -> tuple[float, float]:
    """Top-1 of the linear probe and of k nearest neighbours, of the newest result."""
    report = parse_json(sorted(folder.glob("*.json"))[-1].read_bytes())
    (layer,) = report["layers"].values()
    return float(layer["linear"]["top1"]), float(layer["neighbours"][0]["top1"])


def fine_tuned(folder: Path, kind: str) -> dict[str, Curve]:
    """Top-1 on validation over the steps, by seed."""
    runs = sorted(folder.glob(f"{kind}-*"))
    lines = {run: list(entries(run / "metrics.jsonl")) for run in runs}
    return {
        run.name.removeprefix(f"{kind}-"): {
            line["step"]: float(line["val_top1"]) for line in lines[run] if "val_top1" in line
        }
        for run in runs
    }


def main() -> int:
    """Exit status 0, or 1 when FOLDER is not complete."""
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="OUT of scripts/reproduce_small.sh")
    prepare()
    folder: Path = parser.parse_args().folder
    kinds = [kind for kind in KINDS if kind in ("scratch", "hog") or (folder / "probe" / kind).exists()]
    try:
        probes = {kind: probed(folder / "probe" / kind) for kind in kinds}
        curves = {kind: fine_tuned(folder / "finetune", kind) for kind in kinds}
        ends = {kind: [max(curve.items())[1] for curve in of.values()] for kind, of in curves.items()}
        spread = {kind: f"{statistics.fmean(values):.1%}" for kind, values in ends.items()}
    except (OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        note(f"error: {folder} is not complete ({error}): run scripts/reproduce_small.sh to its end")
        return 1

    table = Table("pre-training", "linear", "k-NN", "fine-tuned", "each seed", box=SIMPLE_HEAD, title="top-1")
    for kind in kinds:
        linear, neighbours = probes[kind]
        each = ", ".join(f"{value:.1%}" for value in ends[kind])
        table.add_row(KINDS[kind], f"{linear:.1%}", f"{neighbours:.1%}", spread[kind], each)
    Console(highlight=False, markup=False).print(table)
    draw(folder / "results.png", probes, curves)
    say(f"plots: {folder}/results.png")
    return 0


def draw(path: Path, probes: dict[str, tuple[float, float]], curves: dict[str, dict[str, Curve]]) -> None:
    """Bars of the probes, and curves of fine-tuning, a line a seed."""
    figure, (bars, lines) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    apart = len(probes) + 1
    for place, (kind, of_kind) in enumerate(probes.items()):
        name = KINDS[kind]
        drawn = bars.bar([place, place + apart], [100 * value for value in of_kind], label=name, color=f"C{place}")
        bars.bar_label(drawn, fmt="%.1f")
        for index, curve in enumerate(curves[kind].values()):
            top1 = [100 * value for value in curve.values()]
            lines.plot(list(curve), top1, color=f"C{place}", label=None if index else name)
    ticks = [apart / 2 - 1, 1.5 * apart - 1]
    bars.set(title="frozen features", ylabel="top-1 (%)", xticks=ticks, xticklabels=["linear probe", "k-NN"])
    lines.set(title="fine-tuning, a line a seed", xlabel="step", ylabel="top-1 (%)")
    lines.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
