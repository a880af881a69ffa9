"""Measure a run on a validation set, after training.

    maskfeat validate RUN [section.key=value ...] [--step N] [--clips N ...] [--crops 1|3]

RUN is a run.dir: its newest valid checkpoint is measured, or that of step N. RUN is not changed. One process
without the launcher works, too.

For pre-training, these are the losses under fixed masks, drawn by run.seed, beside those of constant predictors.
For fine-tuning, it is the accuracy with N clips of each video and the crops of each clip, whose softmax is averaged;
several values of N take one pass.

Examples, each on one line:

    maskfeat validate runs/vit_base_300e data.validation=/data/val data.validation_samples=null

    maskfeat validate runs/finetune/mvit_small_200e_k400 --clips 1 3 5 7 10 --crops 1
"""

import argparse
import json
from pathlib import Path

from pipeline.checkpoints import checkpoint
from pipeline.cluster.launchers import accept_local_rank, accept_usage_check
from pipeline.cluster.world import join
from pipeline.finetune.config import FinetuneRecipe
from pipeline.measure import measure, measure_classifier, recorded
from pipeline.settings import ConfigError
from pipeline.train.command import status_of
from shards.terminal import Parser, say

MOST_CLIPS = 100  # per video, all in memory at once


def clips(text: str) -> int:
    """Parse a number of clips. Raises ArgumentTypeError for anything else."""
    if "=" in text:
        raise argparse.ArgumentTypeError(f"{text} is a setting: give it before the options")
    if not (text.isdecimal() and 1 <= int(text) <= MOST_CLIPS):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to {MOST_CLIPS}")
    return int(text)


def main() -> int:
    """Return 0 on success, 1 for an error, 2 for wrong usage."""
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, help="a run.dir of maskfeat pretrain or finetune")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="settings that override the recipe's"
    )
    parser.add_argument("--step", type=int, help="step of an older checkpoint")
    parser.add_argument("--clips", type=clips, nargs="+", metavar="N", help="clips per video (10), or image (1)")
    parser.add_argument("--crops", type=int, choices=(1, 3), default=1, help="crops per clip (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    accept_local_rank(parser)
    accept_usage_check(parser)
    arguments = parser.parse_intermixed_args()
    run, overrides = arguments.run, arguments.overrides

    def tell() -> None:
        classifies = isinstance(recorded(run, overrides), FinetuneRecipe)
        if not classifies and (arguments.clips or arguments.crops > 1):
            raise ConfigError(
                f"--clips and --crops are for fine-tuned runs, and {run} is of pre-training: leave them out"
            )
        if arguments.check_usage:
            return
        found = checkpoint.chosen(run, arguments.step)
        world = join()
        if classifies:
            measured = measure_classifier(run, found, overrides, arguments.clips, arguments.crops, world)
        else:
            measured = measure(run, found, overrides, world)
        if world.rank == 0 and arguments.json:
            print(json.dumps({"step": found.facts.step} | measured, indent=1))
        elif world.rank == 0:
            say(f"step {found.facts.step}: " + ", ".join(f"{name} {value:.4g}" for name, value in measured.items()))

    return status_of(tell)
