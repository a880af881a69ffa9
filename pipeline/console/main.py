"""The program `maskfeat`: all commands under one name, with or without a checkout."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from pipeline.console.launch import TRAINING, options_parser, start
from pipeline.recipe_files import RECIPES, list_recipes, names
from shards.interrupts import ending_quietly
from shards.program import program, quietly
from shards.terminal import prepare, say

# Arguments that a single process answers at once
AT_ONCE = {"-h", "--help", "--print-config"}


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        summary: a summary for the list of commands.
        processes: whether it runs in several processes, on the GPUs or cores of the machine.
        recipes: the folder of its recipes, if it takes any.
        package: the package with the module of its name, which has a `main`.
    """

    summary: str
    processes: bool = False
    recipes: Path | None = None
    package: str = "pipeline.commands"


COMMANDS = {
    "pretrain": Command("Pre-train a vision transformer with MaskFeat.", True, RECIPES),
    "finetune": Command("Fine-tune a vision transformer as a classifier.", True, RECIPES / "finetune"),
    "probe": Command("Evaluate frozen features by linear and k-NN probes.", True),
    "validate": Command("Measure a run on a validation set.", True),
    "predict": Command("Draw what trained weights make of your own pictures."),
    "export": Command("Export a run as ordinary timm and Hugging Face weights."),
    "convert": Command("Convert a published MaskFeat checkpoint."),
    "report": Command("Print the progress and results of a run."),
    "doctor": Command("Find the problems of a machine or a cluster.", True, RECIPES),
    "settings": Command("Describe the settings of recipes."),
    "estimate": Command("Estimate the needs of a recipe on many GPUs.", recipes=RECIPES),
    "words": Command("Find the visual words of a data set.", True),
    "supervise": Command("Keep a run going.", package="pipeline.supervisor"),
    "stop": Command("Signal the processes of a run on this machine.", package="pipeline.supervisor"),
}

HELP = """Pre-train vision transformers with MaskFeat.

`maskfeat COMMAND --help` shows arguments and examples, and `maskfeat --list` the recipes. `maskfeat-shards` makes data
sets.
"""


def main() -> None:
    """Run the command line."""
    prepare()
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    with quietly():
        if name in COMMANDS:
            sys.exit(run(name, sys.argv[2:]))
        if name == "--list":
            list_all_recipes()
            return
        _app()(prog_name="maskfeat")


def run(name: str, arguments: list[str]) -> int:
    """Run a command and return its exit status, or become it."""
    command = COMMANDS[name]
    if command.recipes and "--list" in arguments:
        list_recipes(command.recipes)
        return 0
    if command.processes and not AT_ONCE & {*arguments}:
        return start(name, arguments)
    sys.argv = [f"maskfeat {name}", *arguments]
    if command.processes:
        os.environ["DS_ACCELERATOR"] = "cpu"  # nothing is computed, so no GPU is needed
    try:
        with ending_quietly():
            main_of_command = import_module(f"{command.package}.{name}").main
        return int(main_of_command())
    finally:
        if command.processes and {"-h", "--help"} & {*arguments}:
            print(f"\n{options_parser(name).format_help()}")


def list_all_recipes() -> None:
    """Print the recipes of pre-training and of fine-tuning, each under the command that takes them."""
    for command in TRAINING:
        folder = COMMANDS[command].recipes
        assert folder
        say(f"maskfeat {command} RECIPE:")
        list_recipes(folder)


def _app() -> typer.Typer:
    """Return the program for everything but running a command: help, version, completion, mistyped names."""
    app = program("maskfeat", HELP)
    for name, command in COMMANDS.items():
        app.command(name, help=command.summary, add_help_option=False)(_completed(command.recipes))
    return app


def _completed(recipes: Path | None) -> Callable[..., None]:
    """Return a stand-in for a command, for the completion of its arguments by shells."""

    def complete(incomplete: str) -> list[str]:
        key, equals, path = incomplete.rpartition("=")
        found = Path(path).parent.glob(f"{Path(path).name}*") if path else Path().glob("*")
        files = [f"{key}{equals}{file}{'/' if file.is_dir() else ''}" for file in sorted(found)]
        known = names(recipes) if recipes and not equals else []
        return [name for name in known if name.startswith(incomplete)] + files

    def command(
        arguments: Annotated[list[str] | None, typer.Argument(autocompletion=complete)] = None,
    ) -> None:
        raise AssertionError("`main` runs the commands")

    return command
