"""The command `maskfeat-shards`. Exit status: 0 done, 1 problems in the data, 2 wrong usage or a failure."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from shards import build as builder
from shards.files import ShardError
from shards.index import index_tars
from shards.making.engines import run, run_on_ray
from shards.manifest import Dataset, Manifest
from shards.media.media import DEFAULT_MAX_PIXELS, Check, Frames
from shards.output import overview, progress, summarise
from shards.preview import write_preview
from shards.storage import join
from shards.tables.rejects import REJECTS, example
from shards.terminal import note, note_error, prepare, say, shown
from shards.text import counted
from shards.verify import verify as find_problems

_PROBLEMS_SHOWN = 50

# click's ClickException; newer versions of typer have their own copy
_NotUnderstood = cast(type[typer.BadParameter], typer.BadParameter.__mro__[2])

Out = Annotated[str, typer.Argument(metavar="OUT", help="Folder or object-store URL to create.")]
Root = Annotated[str, typer.Argument(metavar="DIR", help="A finished data set: a folder or URL.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Parallel workers.", show_default="one per CPU core")]
Engine = Literal["local", "ray"]
MaxPixels = Annotated[int, typer.Option(min=1, help="Reject larger images and videos.")]
MaxRejects = Annotated[int, typer.Option(min=0, help="With more rejects, exit with status 1.")]


def build(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder, tar of class tars, or table.")],
    out: Out,
    samples_per_shard: Annotated[int, typer.Option(min=1, help="Samples assigned to each shard.")] = 1000,
    resize: Annotated[
        int | None,
        typer.Option(min=1, metavar="PX", help="Shrink short sides to PX; store JPEG and H.264.", show_default="off"),
    ] = None,
    workers: Workers = None,
    seed: Annotated[int, typer.Option(help="Seed of the order of the samples.")] = 0,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    check: Annotated[Check, typer.Option(help="How to check images: decode all, or trust headers.")] = "decode",
    frames: Annotated[
        Frames | None, typer.Option(help="Store videos as JPEGs of their frames.", show_default="off")
    ] = None,
    frame_stride: Annotated[
        int, typer.Option(min=1, metavar="N", help="With --frames, store every N-th frame only.")
    ] = 1,
    engine: Annotated[Engine, typer.Option(help="Where the workers run.")] = "local",
    ray_address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Address of the Ray cluster.", show_default="$RAY_ADDRESS")
    ] = None,
    max_rejects: MaxRejects = 0,
) -> None:
    """Check every image and video in SRC and write those that are fit for training to OUT.

    SRC is a folder (SRC/<class>/**/<file>, or SRC/<file>), a tar of <class>.tar files as ImageNet is published,
    or a .csv or .parquet table with a column `path` (files or URLs) and, for classes, `label` (names or integers);
    docs/reference/sources.md lists the other names of these columns, and the folders and files that are ignored.

    OUT may be the URL of an object store, such as s3://bucket/set. Credentials come from the environment, as the
    store's own tools; shards are kept in the folder for temporary files ($TMPDIR) until they are uploaded.

    With --frames jpeg, training reads and decodes only the frames of a clip, as images: for nodes with few CPU cores.
    Such a data set is several times larger; docs/how-to/video.md says by how much, and how to choose --frame-stride.

    With --engine ray, the workers run on a Ray cluster, where SRC and OUT must have the same paths or URLs on every
    node, for instance on a shared file system. The result is the same, byte for byte.

    An interrupted build resumes when the same command is run again; the result is the same, byte for byte.
    Files that cannot be used are omitted and listed, with the reason, in OUT/rejects.parquet.

    \b
    Examples:
      maskfeat-shards build imagenet/train shards/train
      maskfeat-shards build ILSVRC2012_img_train.tar shards/train-256 --resize 256
      maskfeat-shards build kinetics400/train shards/k400 --resize 256 --samples-per-shard 200
      maskfeat-shards build kinetics400/train shards/k400-jpeg --resize 256 --frames jpeg --samples-per-shard 200
      maskfeat-shards build photos.csv shards/photos --samples-per-shard 5000 --max-rejects 100
      maskfeat-shards build /mnt/photos s3://bucket/photos --engine ray --ray-address auto
    """
    begun = time.monotonic()
    with _resumable(out), progress("build", "files") as report:
        dataset, finished_before = builder.build(
            source,
            out,
            samples_per_shard=samples_per_shard,
            resize=resize,
            workers=workers,
            seed=seed,
            max_pixels=max_pixels,
            check=check,
            frames=frames,
            frame_stride=frame_stride,
            engine=partial(run_on_ray, address=ray_address) if engine == "ray" else run,
            progress=report,
            note=note,
        )
    if finished_before:
        say(f"{out}: already built from these {Manifest.load(out).noun}s with these options; nothing to do")
    else:
        summarise(out, dataset, time.monotonic() - begun)
    _judge(out, dataset, max_rejects)


def index(
    tars: Annotated[list[str], typer.Argument(metavar="TAR", help="Paths, globs or URLs; {000..099} is expanded.")],
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder or URL for the manifest.")],
    workers: Workers = None,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    max_rejects: MaxRejects = 0,
) -> None:
    """Make a data set in DIR of existing WebDataset tars, which are neither changed nor moved.

    Every image and video is checked as in `build`. Labels, names or numbers, are read from `.cls`, or from `label` or a
    similar key in `.json`. Bad samples, those that would have to be rewritten, and tars that cannot be read are omitted
    and listed in DIR/rejects.parquet. An interrupted run resumes when the same command is run again.

    \b
    Examples:
      maskfeat-shards index 'imagenet/imagenet-train-{0000..1023}.tar' --out imagenet-index
      maskfeat-shards index 'laion/*.tar' --out laion
    """
    begun = time.monotonic()
    with _resumable(out), progress("index", "tars") as report:
        dataset, finished_before = index_tars(
            tars, out, workers=workers, max_pixels=max_pixels, progress=report, note=note
        )
    if finished_before:
        say(f"{out}: already made from these tars; nothing to do")
    else:
        summarise(out, dataset, time.monotonic() - begun)
    _judge(out, dataset, max_rejects)


def verify(root: Root, workers: Workers = None) -> None:
    """Read every byte in DIR and report the shards and images that differ from what was built.

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
    say(f"{root}: {samples} in {shards}: all as they were built")


def info(root: Root) -> None:
    """Describe the data set in DIR.

    \b
    Example:
      maskfeat-shards info shards/train
    """
    rows = overview(Dataset.load(root), Manifest.load(root))
    # Plain lines: a narrow terminal wraps them and a pipe passes them on unchanged.
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(f"{name:<{width}}  {value}")


def preview(
    root: Root,
    out: Annotated[Path, typer.Option(metavar="FILE", help="HTML page to write.")],
) -> None:
    """Show the data set in DIR on one page: samples of every class, sizes, rejects, duplicates.

    \b
    Example:
      maskfeat-shards preview shards/train --out train.html
    """
    samples = write_preview(root, out)
    say(f"{out}: {samples} samples, {out.stat().st_size / 1e6:,.1f} MB; open it in a browser")


COMMANDS: tuple[Callable[..., None], ...] = (build, index, verify, info, preview)


def main(commands: Iterable[Callable[..., None]] = COMMANDS) -> None:
    """Run the command line with these commands; errors that users can fix are one line."""
    app = typer.Typer(
        help="Turn images and videos into checked WebDataset shards with a manifest.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for command in commands:
        app.command()(command)
    prepare()
    try:
        sys.exit(app([_expanded(argument) for argument in sys.argv[1:]], standalone_mode=False) or 0)
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


@contextmanager
def _resumable(out: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        note(f"interrupted: run the same command again to resume; finished shards in {out} are kept")
        raise typer.Exit(130) from None


def _judge(out: str, dataset: Dataset, max_rejects: int) -> None:
    if dataset.rejects > max_rejects:
        note(
            f"{out} is complete and usable, but has {counted(dataset.rejects, 'reject')} where --max-rejects allows "
            f"{max_rejects:,} (such as {example(out)}); {join(out, REJECTS)} says which and why"
        )
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
