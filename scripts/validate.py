"""Measure a pre-training run on another validation set, beside predictors that learn nothing.

    deepspeed scripts/validate.py RUN data.validation=SHARDS [section.key=value ...] [--step N]

RUN is a run.dir of scripts/pretrain.py: its newest valid checkpoint is measured, or that of step N, under the masks
that run.seed decides. Nothing of RUN is changed. One process without the launcher works, too.

Examples, each on one line:

    deepspeed scripts/validate.py runs/vit_base_300e data.validation=/data/val data.validation_samples=null

    DS_ACCELERATOR=cpu python scripts/validate.py demo_video/run data.validation=demo_video/shards/later
"""

import argparse
import os
from pathlib import Path

from pipeline.checkpoints import checkpoint
from pipeline.checkpoints.checkpoint import CheckpointError
from pipeline.cluster.world import join, lost_a_rank
from pipeline.data.errors import DataError
from pipeline.measure import measure
from pipeline.settings import ConfigError
from pipeline.train.command import leave
from shards.files import ShardError
from shards.terminal import Parser, note, say

EXPECTED = (ConfigError, CheckpointError, ShardError, DataError, OSError)  # one line says it all


def main() -> int:
    """Exit status 0: measured; 1: it cannot be; 2: it was not understood."""
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, help="a run.dir of scripts/pretrain.py")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="settings that replace the recipe's"
    )
    parser.add_argument("--step", type=int, help="of an older checkpoint")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    arguments = parser.parse_intermixed_args()
    try:
        found = checkpoint.chosen(arguments.run, arguments.step)
        world = join()
        measured = measure(arguments.run, found, arguments.overrides, world)
    except EXPECTED as error:
        if os.environ.get("RANK", "0") == "0" or isinstance(error, DataError):
            note(f"error: {error}")
        return 2 if isinstance(error, ConfigError) else 1
    except RuntimeError as error:
        if not lost_a_rank(error):
            raise
        note(f"error: lost another rank, whose own error tells why ({str(error).splitlines()[0]})")
        return 1
    if world.rank == 0:
        say(f"step {found.facts.step}: " + ", ".join(f"{name} {value:.4g}" for name, value in measured.items()))
    return 0


if __name__ == "__main__":
    leave(main)
