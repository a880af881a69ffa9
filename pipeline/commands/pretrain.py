"""Pre-train a vision transformer with MaskFeat.

    deepspeed scripts/pretrain.py RECIPE [section.key=value ...]

RECIPE is a name in pipeline/recipes or the path of a YAML file. Started again with the same run.dir, a run resumes from
its newest checkpoint. On SIGTERM, SIGUSR1, SIGINT or SIGHUP, to one rank or to all, it ends the step, saves, and exits
with status 75: start the same command again.

Examples, each on one line:

    deepspeed scripts/pretrain.py vit_base_300e data.shards=/data/train data.validation=/data/val run.dir=/runs/base

    DS_ACCELERATOR=cpu deepspeed --num_gpus 2 scripts/pretrain.py demo data.shards=shards/train

    deepspeed --hostfile hosts scripts/pretrain.py vit_large_1600e data.shards=/data/train engine.zero_stage=2
"""

from pipeline.config import Recipe
from pipeline.pretrain.task import Pretraining
from pipeline.train.command import train


def main() -> int:
    """Exit status 0: the run is complete; 1: it cannot go on; 2: it was not understood; 75: it was asked to stop."""
    return train(str(__doc__), Recipe, Pretraining)
