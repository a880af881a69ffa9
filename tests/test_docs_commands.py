"""The commands of README.md and the documentation: their programs, options, recipes and settings exist."""

import re
import runpy
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from launching import CHECKOUT

from pipeline.config import Recipe, load
from pipeline.console.main import COMMANDS
from pipeline.finetune.config import FinetuneRecipe

PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
LAUNCHERS = {"deepspeed", "torchrun", "python"}
OTHERS = {"source", "tensorboard", "pip", "python3", "tail", "docker", "kubectl", "sbatch", "hf"}  # not ours
WITH_VALUE = {"--num_gpus", "--hostfile", "--master_port", "--master_addr", "--master-addr", "--master-port"}
WITH_VALUE |= {"--node_rank", "--node-rank", "--nnodes", "--nproc-per-node", "--processes", "--gpus"}
HELP = runpy.run_path(str(CHECKOUT / "scripts" / "docs_pages.py"))["help_of"]
help_of = cache(HELP)


def commands(page: Path) -> Iterator[str]:
    """Yield the commands of a page's shell blocks, each on one line, without comments, loops and variables."""
    for block in re.findall(r"^ *```bash\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"^\s*(?:(?:for|done|export)\b.*|do )|; done$|\s+#.*", "", line).strip()
            yield from filter(None, command.split("; do "))


def words(command: str) -> list[str]:
    """Return a command's words, without the variables before it."""
    split = shlex.split(command)
    while re.match(r"[A-Z_]+=", split[0]):
        split = split[1:]
    return split


def ours(split: list[str]) -> tuple[str, list[str]]:
    """Return the program of ours that a launcher or Python starts, as a path in the checkout, and its arguments."""
    rest = iter(split[1:])
    for word in rest:
        if word in WITH_VALUE:
            next(rest)
        elif not word.startswith("-"):
            return word, list(rest)
    return "", []


def unknown_options(arguments: list[str], text: str) -> list[str]:
    """Return the options that a help text does not have."""
    known = set(re.findall(r"--[\w-]+", text))
    return [word for word in arguments if word.startswith("--") and word != "--" and word not in known]


def check(command: str) -> None:
    """Raise AssertionError, or the error of a recipe, for a command that could not work."""
    split = words(command)
    program, arguments = split[0], split[1:]
    if program == "maskfeat-shards":
        assert not unknown_options(arguments, help_of("pipeline.cli", arguments[0])), command
    elif program == "maskfeat":
        assert arguments[0] in COMMANDS, command
        check_script(arguments[0], arguments[1:], help_of("pipeline.console", arguments[0]), command)
    elif program.startswith("scripts/"):
        assert (CHECKOUT / program).stat().st_mode & 0o100, command
        assert subprocess.run([CHECKOUT / program, "--help"], capture_output=True).returncode == 0, command
    elif program in LAUNCHERS and arguments[0] != "-c":
        script, arguments = ours(split)
        assert (CHECKOUT / script).is_file(), command
        name = script.removeprefix("scripts/").removesuffix(".py")
        if name != "bench":  # whose options are those of its commands
            check_script(name, arguments, help_of(name), command)
    elif program == "python":
        compile(arguments[1], command, "exec")
    elif program == "sbatch":
        script = next(index for index, word in enumerate(arguments) if word.startswith("scripts/"))
        assert (CHECKOUT / arguments[script]).is_file(), command
        check_recipe("pretrain", arguments[script + 1 :])
    else:
        assert program in OTHERS, f"{program} of {command}"


def check_script(name: str, arguments: list[str], text: str, command: str) -> None:
    """Check the arguments of a command of ours whose help is `text`."""
    if "--" in arguments:  # the supervisor's own, then a command
        check(shlex.join(arguments[arguments.index("--") + 1 :]))
        arguments = arguments[: arguments.index("--")]
    assert not unknown_options(arguments, text), command
    check_recipe(name, arguments)


def check_recipe(name: str, arguments: list[str]) -> None:
    """Load the recipe of a command that has one, with its overrides."""
    kind = {"pretrain": Recipe, "doctor": Recipe, "finetune": FinetuneRecipe}.get(name)
    if name == "doctor" and "--finetune" in arguments:
        kind = FinetuneRecipe
    values = {index + 1 for index, word in enumerate(arguments) if word in WITH_VALUE}
    given = [word for index, word in enumerate(arguments) if index not in values and not word.startswith("--")]
    if kind and given[:1] != ["RECIPE"]:
        overrides = [word for word in given[1:] if word != "..."]
        needed = [] if "..." not in given else ["data.shards=shards", "data.validation=validation"]
        load(kind, given[0], [*needed, *overrides])  # type: ignore[type-var]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_commands_could_work(page: Path) -> None:
    for command in commands(page):
        check(command)


@pytest.mark.parametrize(
    "command",
    [
        "maskfeat-shards build photos out --resise 128",
        "deepspeed --num_gpus 2 scripts/pretrain.py smal data.shards=shards",
        "deepspeed scripts/pretrain.py small data.shards=shards optim.epoch=3",
        "python scripts/exports.py runs/photos weights",
        "python scripts/report.py runs/photos --long",
        "deepspeed scripts/finetune.py vit_base_300e data.shards=a data.validation=b",
        "scripts/demos.sh",
        "maskfeat pretrian small data.shards=shards",
        "maskfeat pretrain smal data.shards=shards",
        "maskfeat report runs/photos --long",
        "maskfeat pretrain small data.shards=a --gpu 3",
        "maskfeet small",
    ],
)
def test_mistakes_are_found(command: str) -> None:
    with pytest.raises((AssertionError, FileNotFoundError, ValueError)):
        check(command)


def test_quoted_messages_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", (CHECKOUT / "docs" / "how-to" / "troubleshooting.md").read_text(), re.M)
    sources = "".join(
        file.read_text() for folder in ("shards", "pipeline", "model") for file in (CHECKOUT / folder).rglob("*.py")
    )
    assert len(rows) > 10
    assert [message for message in rows if message not in sources and message != "data_wait"] == []
