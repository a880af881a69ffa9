"""Compare pre-training variants: the table and the plots of scripts/reproduce_small.sh.

    python scripts/compare.py FOLDER

FOLDER has pretrain/KIND, probe/KIND/*.json and finetune/KIND-SEED for the kinds hog, pixels, light and local, and the
last two for scratch, which was not pre-trained. Shows the kinds that were probed. Writes results.png there.

Example, after scripts/reproduce_small.sh /data/flowers reproduction:

    python scripts/compare.py reproduction
"""

import json
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipeline.files import entries
from pipeline.pretrain.baselines import read_baselines
from shards.files import parse_json
from shards.program import quietly
from shards.terminal import Parser, note, prepare, say

mpl.use("Agg")
from matplotlib import pyplot as plt  # reads which backend to use
from matplotlib.axes import Axes

KINDS = {
    "scratch": "none",
    "hog": "HOG",
    "pixels": "pixels",
    "light": "light",
    "local": "local",
}
Curve = dict[float, float]  # by step, or by share of the run


@dataclass(frozen=True)
class Block:
    """Top-1 of the probes on one block's features, and of the linear probe on held-out training images."""

    index: int
    linear: float
    neighbours: float
    held_out: float


@dataclass(frozen=True)
class Pretraining:
    """One run of scripts/pretrain.py. The curves are over the share of its steps.

    Attributes:
        epochs: epochs of the whole run.
        batch_size: images per step.
        images_per_second: the rate that a tenth of the log lines reach, since other work may run beside the others.
        losses: validation losses, divided by that of predicting the mean target.
        probes: top-1 of the linear probe on the last block, on a part of the images.
    """

    epochs: float
    batch_size: int
    images_per_second: float
    losses: Curve
    probes: Curve

    @property
    def step_ms(self) -> float:
        """The milliseconds of a step at that rate."""
        return 1000 * self.batch_size / self.images_per_second


@dataclass(frozen=True)
class Variant:
    """The results of one kind: its run, unless it is scratch, its probes by block, and fine-tuning by seed."""

    name: str
    run: Pretraining | None
    blocks: list[Block]
    fine_tuned: dict[str, Curve]

    @property
    def chosen(self) -> Block:
        """The block with the best linear probe on held-out training images, since the best on validation is biased."""
        return max(self.blocks, key=lambda block: block.held_out)

    @property
    def figures(self) -> dict[str, Any]:
        """Return the numbers of the table, for --json; accuracies are in [0, 1]."""
        return {
            "name": self.name,
            "epochs": self.run.epochs if self.run else None,
            "images_per_second": self.run.images_per_second if self.run else None,
            "step_ms": self.run.step_ms if self.run else None,
            "last_block": asdict(self.blocks[-1]),
            "chosen_block": asdict(self.chosen),
            "fine_tuned": {seed: max(curve.items())[1] for seed, curve in self.fine_tuned.items()},
        }

    @property
    def row(self) -> list[str]:
        """Return the cells of the table."""
        last, chosen = self.blocks[-1], self.chosen
        ends = [max(curve.items())[1] for curve in self.fine_tuned.values()]
        mean = [statistics.fmean(ends)] if ends else []
        return [
            self.name,
            f"{self.run.epochs:g}" if self.run else "",
            f"{self.run.images_per_second:.0f}" if self.run else "",
            f"{self.run.step_ms:.0f}" if self.run else "",
            *percent(last.linear, last.neighbours),
            f"{chosen.index}",
            *percent(chosen.linear, chosen.neighbours),
            *(percent(*mean) or [""]),
            ", ".join(percent(*ends)),
        ]


def percent(*accuracies: float) -> list[str]:
    """Return accuracies in [0, 1] as percentages."""
    return [f"{100 * accuracy:.1f}" for accuracy in accuracies]


def read(folder: Path, kind: str) -> Variant:
    """Return the results of one kind in `folder`.

    Raises:
        OSError, LookupError, ValueError, TypeError, AttributeError: something is missing, or not complete.
    """
    runs = sorted((folder / "finetune").glob(f"{kind}-*"))
    fine_tuned = {run.name.removeprefix(f"{kind}-"): curve(run, "val_top1") for run in runs}
    run = folder / "pretrain" / kind
    return Variant(
        KINDS[kind], None if kind == "scratch" else pretrained(run), probed(folder / "probe" / kind), fine_tuned
    )


def pretrained(run: Path) -> Pretraining:
    """Return the curves of a run of scripts/pretrain.py."""
    recipe = yaml.safe_load((run / "config.yaml").read_text())
    rates = [line["images_per_second"] for line in entries(run / "metrics.jsonl") if "images_per_second" in line]
    losses, probes = curve(run, "val_loss"), curve(run, "probe_linear")
    end, mean = max(losses), read_baselines(run)["mean"]
    return Pretraining(
        recipe["optim"]["epochs"],
        recipe["optim"]["batch_size"],
        float(np.quantile(rates, 0.9)),
        {step / end: loss / mean for step, loss in losses.items()},
        {step / end: top1 for step, top1 in probes.items()},
    )


def probed(folder: Path) -> list[Block]:
    """Return the accuracies of the newest probe, block by block."""
    layers: dict[str, Any] = parse_json(sorted(folder.glob("*.json"))[-1].read_bytes())["layers"]
    return [block(int(index), report) for index, report in sorted(layers.items(), key=lambda layer: int(layer[0]))]


def block(index: int, report: dict[str, Any]) -> Block:
    """Return the accuracies of one block of a probe's report."""
    linear = report["linear"]
    held_out = next(rate["held_out_top1"] for rate in linear["rates"] if rate["rate"] == linear["rate"])
    return Block(index, float(linear["top1"]), float(report["neighbours"][0]["top1"]), held_out)


def curve(run: Path, metric: str) -> Curve:
    """Return a metric of a run by step."""
    return {line["step"]: float(line[metric]) for line in entries(run / "metrics.jsonl") if metric in line}


def main() -> int:
    """Return 0, or 1 when FOLDER is not complete."""
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="OUT of scripts/reproduce_small.sh")
    parser.add_argument(
        "--json", action="store_true", help="print a JSON list with an object for each kind, instead of the table"
    )
    prepare()
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    kinds = [kind for kind in KINDS if any((folder / "probe" / kind).glob("*.json"))]
    if not kinds:
        note(f"error: {folder} has no probe/KIND/*.json: run scripts/reproduce_small.sh first")
        return 1
    try:
        variants = [read(folder, kind) for kind in kinds]
        rows, figures = [variant.row for variant in variants], [variant.figures for variant in variants]
    except (OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        note(f"error: {folder} is not complete ({error}): run scripts/reproduce_small.sh again, which resumes")
        return 1

    if arguments.json:
        print(json.dumps(figures, indent=1))
    else:
        show(rows)
    draw(folder / "results.png", variants)
    (note if arguments.json else say)(f"plots: {folder}/results.png")
    return 0


def show(rows: list[list[str]]) -> None:
    """Print the table."""
    columns = ("linear", "k-NN", "block", "linear", "k-NN", "fine-tuned", "each seed")
    table = Table(
        *("pre-training", "epochs", "images/s", "ms/step", *columns),
        box=SIMPLE_HEAD,
        title="top-1 (%)",
        collapse_padding=True,
    )
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, Console(width=10_000).measure(table).maximum)  # narrower, it would be cut
    console.print(table)
    say("probes of the last block, and of the block whose linear probe is best on held-out training images")


def draw(path: Path, variants: list[Variant]) -> None:
    """Draw the curves of pre-training, the probes by block, and the curves of fine-tuning, one line per seed."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    losses, probes, blocks, tuning = axes.flat
    for place, variant in enumerate(variants):
        style: dict[str, Any] = {"color": f"C{place}"}
        if variant.run:
            line(losses, variant.run.losses, 1, label=variant.name, **style)
            line(probes, variant.run.probes, 100, label=variant.name, **style)
        for values, dashes, what in (
            ([block.linear for block in variant.blocks], "-", variant.name),
            ([block.neighbours for block in variant.blocks], ":", None),
        ):
            indices = [block.index for block in variant.blocks]
            line(
                blocks, dict(zip(indices, values, strict=True)), 100, label=what, linestyle=dashes, marker=".", **style
            )
        for seed, top1 in enumerate(variant.fine_tuned.values()):
            line(tuning, top1, 100, label=None if seed else variant.name, **style)
    losses.axhline(1, color="grey", linewidth=1, linestyle=":")
    losses.set(title="pre-training: validation loss / loss of the mean target", xlabel="share of the run")
    probes.set(title="pre-training: linear probe, last block", xlabel="share of the run", ylabel="top-1 (%)")
    blocks.set(title="frozen features: linear (lines), k-NN (dots)", xlabel="block", ylabel="top-1 (%)")
    tuning.set(title="fine-tuning, a line a seed", xlabel="step", ylabel="top-1 (%)")
    figure.legend(*blocks.get_legend_handles_labels(), loc="outside lower center", ncols=len(variants))
    figure.savefig(path, dpi=120)


def line(axes: Axes, points: Curve, scale: float, **style: Any) -> None:
    """Draw a curve, or a dot where it has only one point, with its values times `scale`."""
    dot = {"marker": "."} if len(points) == 1 else {}
    axes.plot(list(points), [scale * value for value in points.values()], **dot | style)


if __name__ == "__main__":
    with quietly():
        sys.exit(main())
