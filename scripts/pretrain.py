"""Pre-train a vision transformer with MaskFeat.

    deepspeed scripts/pretrain.py RECIPE [section.key=value ...]

RECIPE is a name in scripts/recipes (demo, vit_base_300e, vit_base_1600e, vit_large_1600e) or the path of a YAML file.
Started again with the same run.dir, a run resumes from its newest checkpoint. On SIGTERM, SIGUSR1 or SIGINT, to one
rank or to all, it ends the step, saves, and exits with status 75: start the same command again.

Examples, each on one line:

    deepspeed scripts/pretrain.py vit_base_300e data.shards=/data/train data.validation=/data/val run.dir=/runs/base

    DS_ACCELERATOR=cpu deepspeed --num_gpus 2 scripts/pretrain.py demo data.shards=shards/train

    deepspeed --hostfile hosts scripts/pretrain.py vit_large_1600e data.shards=/data/train engine.zero_stage=2
"""

import argparse
import os
import sys
import traceback

from torch.distributed import DistBackendError

from pipeline.config import ConfigError, load_recipe
from pipeline.data.errors import DataError
from pipeline.train.checkpoint import CheckpointError
from pipeline.train.loop import Outcome, Pretraining, TrainingError
from pipeline.train.phases import Phases
from pipeline.train.preemption import EXIT_STATUS, Preemption
from pipeline.train.world import join
from shards.files import ShardError

EXPECTED = (ConfigError, ShardError, CheckpointError, DataError, TrainingError)  # one line says it all


def main() -> int:
    """Exit status 0: the run is complete; 1: it cannot go on; 2: it was not understood; 75: it was asked to stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="name in scripts/recipes, or path of a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the recipe's")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    arguments = parser.parse_args()
    try:
        recipe = load_recipe(arguments.recipe, arguments.overrides)
    except ConfigError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 2
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    local_rank = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    started = False
    try:
        with Phases(recipe.run.dir, rank, recipe.run.deadline) as phases:
            world = join()
            outcome = Outcome.ROLLED_BACK
            with Preemption(world) as preemption:
                while outcome is Outcome.ROLLED_BACK:
                    training = Pretraining(recipe, world, phases)
                    started = True
                    outcome = training.run(preemption)
                    del training  # before the next life takes as much memory
    except EXPECTED as error:  # most meet all ranks of a node alike: one line is enough
        if local_rank == 0 or (started and isinstance(error, DataError)):
            print(f"error: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if "gloo" not in str(error) and not isinstance(error, DistBackendError):
            raise
        print(f"error: rank {rank} lost another rank, whose own error tells why", file=sys.stderr)
        return 1
    return 0 if outcome is Outcome.COMPLETE else EXIT_STATUS


if __name__ == "__main__":
    try:
        status = main()
    except KeyboardInterrupt:
        status = 130
    except Exception:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if status:
        os._exit(status)  # a thread that waits for storage that hangs must not keep a failed run alive
