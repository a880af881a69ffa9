"""What the commands print besides their results: progress, notes on stderr, and summaries of a data set."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shards.duplicates import load_duplicates
from shards.manifest import DUPLICATES, REJECTS, Dataset, Manifest
from shards.rejects import count_rejects
from shards.storage import join

_SECONDS_BETWEEN_LINES = 20.0
_DUPLICATES_SHOWN = 3


def note(line: str) -> None:
    """Prints to stderr."""
    print(line, file=sys.stderr)


def reasons(root: str | Path) -> str:
    """How many images were rejected for which reason."""
    return ", ".join(f"{count:,} {reason}" for reason, count in count_rejects(root).most_common())


def duplicates(root: str | Path) -> str:
    """How many images have the bytes of an earlier one, and the first of them."""
    manifest = Manifest.load(root)
    found = load_duplicates(root, len(manifest))
    if not found:
        return "0"
    pairs = [f"{manifest.path(sample)} = {manifest.path(first)}" for sample, first in found[:_DUPLICATES_SHOWN]]
    return f"{len(found):,} ({', '.join(pairs)}{', ...' if len(found) > len(pairs) else ''})"


def summarise(out: str, dataset: Dataset, seconds: float) -> None:
    """What has come of a build."""
    rate = (dataset.samples + dataset.rejects) / seconds
    print(
        f"{out}: {dataset.samples:,} samples in {len(dataset.shards):,} shards, "
        f"{dataset.bytes / 1e6:,.1f} MB, {seconds:,.1f} s, {rate:,.0f} images/s"
    )
    if dataset.ignored:
        print(f"ignored {dataset.ignored:,} files: hidden ones and those without the suffix of an image")
    if dataset.rejects:
        print(f"rejected {dataset.rejects:,} images ({reasons(out)}): see {join(out, REJECTS)}")
    if load_duplicates(out, dataset.samples):
        print(f"duplicates: {duplicates(out)}: see {join(out, DUPLICATES)}")
    print(f"next: maskfeat-shards verify {out}")


@contextmanager
def progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A function of (done, in all), both in `unit`: a bar on a terminal, now and then a line elsewhere."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    last = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            note(f"{what}: {done:,} of {total:,} {unit}")

    yield line
