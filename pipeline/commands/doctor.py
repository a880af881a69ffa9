"""Find the problems of a cluster before a run does.

    maskfeat doctor RECIPE [section.key=value ...]

Start it like the run: same launcher, same recipe, same overrides, with --finetune for a recipe of
`maskfeat finetune`. It takes about a minute, creates run.dir but leaves nothing in it, and prints its findings with
remedies:

- versions, recipe, inputs, run.dir: the same on all ranks? (every start of a run checks this, too)
- storage, decoding: random samples are read and decoded as in training, and timed
- decoding on GPUs: does it crash, in a separate process, or differ from the CPU, and is libnvjpeg installed?
- all-reduce of a buffer of the gradient's size: the right sum, and fast enough?
- clocks, cores, open files, memory, /dev/shm, space for checkpoints and in data.cache
- the GPUs' memory errors and throttling

Exit status 0: start the run, perhaps after fixing warnings; 1: fix the problems first; 2: wrong usage.

Examples, each on one line:

    maskfeat doctor --hostfile hosts vit_base_300e data.shards=/data/train run.dir=/runs/base --network 50

    maskfeat doctor vit_base_100e --finetune data.shards=/data/train data.validation=/data/val

    maskfeat doctor --processes 2 demo data.shards=shards/train --json findings.json
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.cluster.findings import Finding, Verdict
from pipeline.cluster.launchers import accept_local_rank, accept_usage_check, place
from pipeline.cluster.world import join
from pipeline.config import Recipe, load
from pipeline.doctor.examine import Wanted, examine, within
from pipeline.finetune.config import FinetuneRecipe
from pipeline.recipe_files import read_settings
from pipeline.record import kind_of
from pipeline.settings import ConfigError
from shards.terminal import Parser, note, shown

COLOURS = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.PROBLEM: "red"}
SHOWN = 8  # places per check in the table; --json has all


def main() -> int:
    """Return 0 without problems, 1 with problems, 2 for wrong usage."""
    parser = Parser(__doc__)
    parser.add_argument("recipe", help="name of a recipe, see --list of `maskfeat pretrain` and `finetune`, or path")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="settings that override the recipe's"
    )
    parser.add_argument(
        "--finetune", action="store_true", help="RECIPE is the name of a fine-tuning recipe; not needed for a file"
    )
    parser.add_argument("--samples", type=int, default=512, metavar="N", help="samples read by each rank (%(default)s)")
    parser.add_argument(
        "--images-per-second",
        "--clips-per-second",
        type=float,
        metavar="R",
        help="rate that training needs per rank",
    )
    parser.add_argument("--network", type=float, default=400, help="GB/s that a node of GPUs can send (%(default)s)")
    parser.add_argument("--link", type=float, default=450, help="GB/s that a GPU can send within a node (%(default)s)")
    parser.add_argument("--deadline", type=float, default=120, metavar="S", help="seconds per check (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the findings")
    accept_local_rank(parser)
    accept_usage_check(parser)
    arguments = parser.parse_intermixed_args()
    try:
        kind = FinetuneRecipe if arguments.finetune or _says_finetuning(arguments.recipe) else Recipe
        recipe = load(kind, arguments.recipe, arguments.overrides)
        if arguments.check_usage:
            return 0
        with within(arguments.deadline, "joining the other ranks"):
            world = join()
        wanted = Wanted(
            arguments.samples,
            arguments.images_per_second,
            arguments.network,
            arguments.link,
            arguments.deadline,
        )
        findings = examine(recipe, world, wanted)
    except ConfigError as error:
        if place(os.environ)[1] == 0:
            note(f"error: {error}")
        return 2
    if world.rank == 0:
        show(findings)
        if arguments.json:
            told = [asdict(finding) | {"verdict": finding.verdict.name.lower()} for finding in findings]
            try:
                arguments.json.write_text(json.dumps(told, indent=1) + "\n")
            except OSError as error:
                note(f"error: --json {arguments.json}: {error.strerror}: name a file that can be written")
                return 2
    return int(any(finding.verdict is Verdict.PROBLEM for finding in findings))


def _says_finetuning(recipe: str) -> bool:
    """Return whether a recipe is a file of a fine-tuning run."""
    try:
        return recipe.endswith((".yaml", ".yml")) and kind_of(read_settings(Path(recipe))) == "finetune"
    except (OSError, ValueError):
        return False  # `load` reports what is wrong with it


def show(findings: list[Finding]) -> None:
    """Print a table."""
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 160  # launchers read through pipes
    table = Table("check", "verdict", "found", "remedy", box=SIMPLE_HEAD)
    for finding in findings:
        places = [f"{place}: {result}" for place, result in finding.results.items()]
        if len(places) > SHOWN:
            places[SHOWN:] = [f"and {len(places) - SHOWN} more (--json)"]
        verdict = Text(finding.verdict.name.lower(), COLOURS[finding.verdict])
        table.add_row(finding.check, verdict, "\n".join(map(shown, places)), shown(finding.remedy))
    console.print(table)
