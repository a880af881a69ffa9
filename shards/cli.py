"""The command `maskfeat-shards`. Exit status: 0 done, 1 problems in the data, 2 wrong usage or a failure."""

import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, cast

import typer

from shards.build_command import MaxPixels, MaxRejects, Workers, build
from shards.files import ShardError
from shards.index import index_tars
from shards.manifest import Dataset, Manifest
from shards.media.media import DEFAULT_MAX_PIXELS
from shards.output import figures, judge, overview, progress, resumable, summarise
from shards.preview import write_preview
from shards.program import program, quietly
from shards.storage import join
from shards.terminal import note, note_error, prepare, say, shown
from shards.text import counted, size_of
from shards.verify import verify as find_problems

_PROBLEMS_SHOWN = 50

# click's ClickException; newer versions of typer have their own copy
_NotUnderstood = cast(type[typer.BadParameter], typer.BadParameter.__mro__[2])

Root = Annotated[str, typer.Argument(metavar="DIR", help="A finished data set: a folder or URL.")]


def index(
    tars: Annotated[list[str], typer.Argument(metavar="TAR", help="Paths, globs or URLs; {000..099} is expanded.")],
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder or URL for the manifest.")],
    workers: Workers = None,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    max_rejects: MaxRejects = 0,
) -> None:
    """Make a data set in DIR of existing WebDataset tars.

    The tars are neither changed nor moved. Every image and video is checked as in `build`. Labels, names or
    numbers, are read from `.cls`, or from `label` or a similar key in `.json`. Bad samples, those that would have
    to be rewritten, and tars that cannot be read are omitted and listed in DIR/rejects.parquet. An interrupted run
    resumes when the same command is run again.

    \b
    Examples:
      maskfeat-shards index 'imagenet/imagenet-train-{0000..1023}.tar' --out imagenet-index
      maskfeat-shards index 'laion/*.tar' --out laion
    """
    begun = time.monotonic()
    with resumable(out), progress("index", "tars") as report:
        dataset, finished_before = index_tars(
            tars, out, workers=workers, max_pixels=max_pixels, progress=report, note=note
        )
    if finished_before:
        say(f"{out}: already made from these tars; nothing to do")
    else:
        summarise(out, dataset, time.monotonic() - begun)
    judge([out], max_rejects)


def verify(root: Root, workers: Workers = None) -> None:
    """Compare every byte in DIR with what was built.

    Shards and images that differ are listed, and the exit status is 1.

    \b
    Example:
      maskfeat-shards verify shards/train
    """
    with progress("verify", "samples") as report:
        problems = find_problems(root, workers, report)
    dataset = Dataset.load(root)
    for problem in problems[:_PROBLEMS_SHOWN]:
        say(f"{join(root, problem.file)}: {problem.what}")
    if len(problems) > _PROBLEMS_SHOWN:
        say(f"and {len(problems) - _PROBLEMS_SHOWN:,} more")
    if problems:
        remedy = "copy the files again or build the data set again"
        if dataset.options is None:
            remedy = "restore the original tars, or index them again as they are"
        note(f"{root}: {counted(len(problems), 'problem')}; {remedy}")
        raise typer.Exit(1)
    samples, shards = counted(dataset.samples, "sample"), counted(len(dataset.shards), "shard")
    say(f"{root}: {samples} in {shards}: no problems found")


def info(root: Root, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Describe the data set in DIR.

    \b
    Example:
      maskfeat-shards info shards/train
    """
    dataset, manifest = Dataset.load(root), Manifest.load(root)
    if as_json:
        print(json.dumps(figures(dataset, manifest), indent=1))
        return
    rows = overview(dataset, manifest)
    # Plain lines: a narrow terminal wraps them and a pipe passes them on unchanged.
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(f"{name:<{width}}  {value}")


def preview(
    root: Root,
    out: Annotated[Path, typer.Option(metavar="FILE", help="HTML page to write.")],
) -> None:
    """Show the data set in DIR on an HTML page.

    The page has samples of every class, sizes, rejects and duplicates.

    \b
    Example:
      maskfeat-shards preview shards/train --out train.html
    """
    samples = write_preview(root, out)
    say(f"{out}: {samples} samples, {size_of(out.stat().st_size)}; open it in a browser")


COMMANDS: tuple[Callable[..., None], ...] = (build, index, verify, info, preview)


def main(commands: Iterable[Callable[..., None]] = COMMANDS) -> None:
    """Run the command line with these commands; errors that users can fix are one line."""
    app = program("maskfeat-shards", "Turn images and videos into checked WebDataset shards with a manifest.")
    for command in commands:
        app.command()(command)
    prepare()
    try:
        with quietly():
            status = app([_expanded(argument) for argument in sys.argv[1:]], standalone_mode=False)
        sys.exit(status or 0)
    except ShardError as error:
        note(f"error: {error}")
        sys.exit(2)
    except _NotUnderstood as error:
        if len(sys.argv) > 1:  # else it is the help, which has several lines
            error.message = shown(error.message)
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        note_error(error)
        sys.exit(1)


def _expanded(argument: str) -> str:
    """Return an argument with a leading `~` expanded, which a shell leaves where it is quoted or follows `=`."""
    option, equals, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
    return option + equals + str(Path(value).expanduser()) if value.startswith("~/") else argument


if __name__ == "__main__":
    main()
