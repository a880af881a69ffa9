"""The command lines of programs that run on all ranks: of training runs, and how every such program ends."""

import argparse
import os
import sys
from collections.abc import Callable

from model.weights import WeightsError
from pipeline.checkpoints.checkpoint import CheckpointError
from pipeline.cluster.launchers import place
from pipeline.cluster.lock import PATIENCE, hold
from pipeline.cluster.phases import Phases
from pipeline.cluster.preemption import EXIT_STATUS, Preemption
from pipeline.cluster.witness import witnessed
from pipeline.cluster.world import join, lost_a_rank, record_collectives
from pipeline.config import RECIPES, AnyRecipe, load
from pipeline.data.errors import DataError
from pipeline.settings import ConfigError
from pipeline.train.errors import TrainingError
from pipeline.train.loop import Outcome
from pipeline.train.setup import MakeTask, set_up
from shards.files import ShardError
from shards.terminal import Parser, note, note_error, prepare

EXPECTED = (ConfigError, ShardError, CheckpointError, DataError, TrainingError)  # one line says it all


def train(description: str, kind: type[AnyRecipe], task: MakeTask[AnyRecipe]) -> int:
    """Exit status 0: the run is complete; 1: it cannot go on; 2: it was not understood; 75: it was asked to stop."""
    parser = Parser(description)
    parser.add_argument("recipe", help=f"name in pipeline/{kind.folder.relative_to(RECIPES.parent)}, or path")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="settings that replace the recipe's"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    arguments = parser.parse_args()
    rank, local_rank = place(os.environ)
    try:
        recipe = load(kind, arguments.recipe, arguments.overrides)
    except ConfigError as error:
        if local_rank == 0:
            note(f"error: {error}")
        return 2
    started = False
    try:
        with witnessed(recipe.run.dir, rank), Phases(recipe.run.dir, rank, recipe.run.deadline) as phases:
            record_collectives(recipe.run.dir, rank)
            # Late enough for `Phases`, which tells where, to be first even if a collective began a phase or two before
            world = join(patience=2 * recipe.run.deadline + 60)
            hold(recipe.run.dir, world, min(PATIENCE, recipe.run.deadline / 2))
            outcome = Outcome.ROLLED_BACK
            with Preemption(world) as preemption:
                while outcome is Outcome.ROLLED_BACK:
                    training = set_up(recipe, world, phases, task)
                    started = True
                    outcome = training.run(preemption)
                    del training  # before the next life takes as much memory
    except EXPECTED as error:  # most meet all ranks of a node alike: one line is enough
        if local_rank == 0 or (started and isinstance(error, DataError)):
            note(f"error: {error}")
        return 1
    except RuntimeError as error:
        if not lost_a_rank(error):
            raise
        why = str(error).partition("\n")[0]
        note(f"error: rank {rank} lost another rank, whose own error tells why ({why})")
        return 1
    return 0 if outcome is Outcome.COMPLETE else EXIT_STATUS


def status_of(work: Callable[[], None]) -> int:
    """Do work that all ranks share, other than a run's, and return the exit status: 0, or 2 for a setting, or 1.

    Errors that one line explains are told, most of them by rank 0 alone, since they meet all ranks alike.
    """
    try:
        work()
    except (*EXPECTED, WeightsError, OSError) as error:
        if os.environ.get("RANK", "0") == "0" or isinstance(error, DataError):
            note(f"error: {error}")
        return 2 if isinstance(error, ConfigError) else 1
    except RuntimeError as error:
        if not lost_a_rank(error):
            raise
        note(f"error: lost another rank, whose own error tells why ({str(error).splitlines()[0]})")
        return 1
    return 0


def leave(main: Callable[[], int]) -> None:
    """Run `main` and end the process with its status, whatever its threads do."""
    prepare()
    try:
        status = main()
    except KeyboardInterrupt:
        status = 130
    except Exception as error:
        note_error(error)
        status = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # a full disk, or nobody who listens: what remains to be said must not change the status
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if status:
        os._exit(status)  # a thread that waits for storage that hangs must not keep a failed run alive
