"""The command lines of programs that run on all ranks, and how every such program ends."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from model.weights import WeightsError
from pipeline.checkpoints.checkpoint import CheckpointError
from pipeline.cluster.launchers import accept_local_rank, place
from pipeline.cluster.lock import PATIENCE, hold
from pipeline.cluster.phases import Phases
from pipeline.cluster.preemption import EXIT_STATUS, Preemption
from pipeline.cluster.witness import witnessed
from pipeline.cluster.world import join, lost_a_rank, record_collectives
from pipeline.config import AnyRecipe, TrainingRecipe, load
from pipeline.data.errors import DataError
from pipeline.recipe_files import list_recipes
from pipeline.settings import ConfigError
from pipeline.train.dry_run import dry_run
from pipeline.train.errors import TrainingError
from pipeline.train.loop import Outcome
from pipeline.train.setup import MakeTask, set_up
from shards.files import ShardError
from shards.interrupts import STATUS
from shards.terminal import Parser, note, note_error, prepare, say

UNSET = "???"  # stands for a data set in a printed recipe
EXPECTED = (ConfigError, ShardError, CheckpointError, DataError, TrainingError)  # explained by one line


def train(description: str, kind: type[AnyRecipe], task: MakeTask[AnyRecipe]) -> int:
    """Return the exit status: 0 for a complete run, 1 for an error, 2 for wrong usage, 75 if asked to stop."""
    arguments = _parser(description, kind).parse_intermixed_args()
    rank, local_rank = place(os.environ)
    try:
        recipe = (_load_incomplete if arguments.print_config else load)(kind, arguments.recipe, arguments.overrides)
    except ConfigError as error:
        if local_rank == 0:
            note(f"error: {error}")
        return 2
    if arguments.print_config or arguments.dry_run:
        return status_of(lambda: _tell(recipe, arguments.dry_run)) if rank == 0 else 0
    started = False
    try:
        with witnessed(recipe.run.dir, rank), Phases(recipe.run.dir, rank, recipe.run.deadline) as phases:
            record_collectives(recipe.run.dir, rank)
            # Late enough that `Phases`, which reports where, is first even if a collective began a phase or two before
            world = join(patience=2 * recipe.run.deadline + 60)
            hold(recipe.run.dir, world, min(PATIENCE, recipe.run.deadline / 2))
            outcome = Outcome.ROLLED_BACK
            with Preemption(world) as preemption:
                while outcome is Outcome.ROLLED_BACK:
                    training = set_up(recipe, world, phases, task)
                    started = True
                    outcome = training.run(preemption)
                    del training  # before the next attempt takes as much memory
    except EXPECTED as error:  # most affect all ranks of a node alike: one line is enough
        if local_rank == 0 or (started and isinstance(error, DataError)):
            note(f"error: {error}")
        return 1
    except RuntimeError as error:
        if not lost_a_rank(error):
            raise
        why = str(error).partition("\n")[0]
        note(f"error: rank {rank} lost another rank, whose own error says why ({why})")
        return 1
    return 0 if outcome is Outcome.COMPLETE else EXIT_STATUS


def _parser(description: str, kind: type[TrainingRecipe]) -> Parser:
    folder = kind.folder
    parser = Parser(description)
    parser.add_argument("recipe", help="name of a recipe, see --list, or path of a .yaml file")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="section.key=value",
        help="settings that override the recipe's; section.key.option=value overrides one option of a mapping",
    )
    parser.add_argument("--list", action=ListRecipes, nargs=0, folder=folder, help="list the recipes and exit")
    parser.add_argument("--print-config", action="store_true", help="print all settings as YAML and exit")
    parser.add_argument("--dry-run", action="store_true", help="check recipe and data sets, and exit")
    accept_local_rank(parser)
    return parser


def _load_incomplete(kind: type[AnyRecipe], recipe: str, overrides: list[str]) -> AnyRecipe:
    """Load a recipe as `load` does, with `UNSET` for the data sets that it lacks."""
    shards, validation = (f"data.{key}={UNSET}" for key in ("shards", "validation"))
    problem = None
    for unset in ([], [shards], [validation], [shards, validation]):
        try:
            return load(kind, recipe, [*overrides, *unset])
        except ConfigError as error:
            problem = problem or error
    assert problem
    raise problem


class ListRecipes(argparse.Action):
    """An option that prints the recipes of a folder, each with a description, and ends the program."""

    def __init__(self, *arguments: Any, folder: Path, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._folder = folder

    def __call__(self, *arguments: Any) -> None:
        """Print the list and exit with status 0."""
        list_recipes(self._folder)
        sys.exit(0)


def _tell(recipe: TrainingRecipe, dry: bool) -> None:
    """Print what a run would do, or its settings."""
    if not dry:
        print(yaml.safe_dump(recipe.plain(), sort_keys=False, allow_unicode=True), end="")
        return
    for name, value in dry_run(recipe, int(os.environ.get("WORLD_SIZE", "1"))):
        say(f"{name:<12}{value}")
    say("nothing was started: leave out --dry-run to train")


def status_of(work: Callable[[], None]) -> int:
    """Do work of all ranks other than a run, and return the exit status: 0, 1 for an error, or 2 for a setting.

    Errors that one line explains are printed, most only by rank 0, since they affect all ranks alike.
    """
    try:
        work()
    except BrokenPipeError:  # the reader of the output, such as `head`, has left
        return 1
    except (*EXPECTED, WeightsError, OSError) as error:
        if os.environ.get("RANK", "0") == "0" or isinstance(error, DataError):
            note(f"error: {error}")
        return 2 if isinstance(error, ConfigError) else 1
    except RuntimeError as error:
        if not lost_a_rank(error):
            raise
        note(f"error: lost another rank, whose own error says why ({str(error).splitlines()[0]})")
        return 1
    return 0


def leave(main: Callable[[], int]) -> None:
    """Run `main` and end the process with its status, whatever its threads are doing."""
    prepare()
    try:
        status = main()
    except KeyboardInterrupt:
        status = STATUS
    except Exception as error:
        note_error(error)
        status = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # a full disk, or a closed pipe, must not change the status
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if status:
        os._exit(status)  # a thread that waits for hanging storage must not keep a failed run alive
