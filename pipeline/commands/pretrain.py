"""Pre-train a vision transformer with MaskFeat.

    maskfeat pretrain RECIPE [section.key=value ...]

RECIPE is a name that --list prints, or the path of a YAML file. Started again with the same run.dir, a run resumes from
its newest checkpoint. On SIGTERM, SIGUSR1, SIGINT or SIGHUP, to this program, one rank or all, the run ends the step,
saves, and exits with status 75: start the same command again.

One process is started for each GPU; without a GPU, as many as keep the cores of the CPU busy. If torchrun, srun or
deepspeed starts this program, it is one of their processes.

Examples, each on one line:

    maskfeat pretrain vit_base_300e data.shards=/data/train data.validation=/data/val run.dir=/runs/base

    maskfeat pretrain small data.shards=shards/photos model.options.depth=8 --dry-run

    maskfeat pretrain --hostfile hosts vit_large_1600e data.shards=/data/train run.dir=/runs/large engine.zero_stage=2

    deepspeed --hostfile hosts scripts/pretrain.py vit_large_1600e data.shards=/data/train      (in a checkout)
"""

from pipeline.config import Recipe
from pipeline.pretrain.task import Pretraining
from pipeline.train.command import train


def main() -> int:
    """Return 0 for a complete run, 1 for an error, 2 for wrong usage, 75 if asked to stop."""
    return train(str(__doc__), Recipe, Pretraining)
