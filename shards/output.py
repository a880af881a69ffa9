"""Print the progress of the commands, and summaries of a data set."""

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shards.manifest import Dataset, Manifest
from shards.storage import join
from shards.tables.duplicates import DUPLICATES, load_duplicates
from shards.tables.rejects import REJECTS, count_rejects
from shards.tables.videos import Videos
from shards.terminal import note, say, shown
from shards.text import counted, excerpt

_SECONDS_BETWEEN_LINES = 20.0
_DUPLICATES_SHOWN = 3
_CLASSES_SHOWN = 5
_LARGEST_SHOWN = 10  # classes listed by `info`


def _reasons(root: str | Path) -> str:
    """Return how many images were rejected for each reason."""
    return ", ".join(f"{count:,} {reason}" for reason, count in count_rejects(root).most_common())


def _duplicates(manifest: Manifest) -> str:
    """Say how many images have the bytes of an earlier one, and name the first of them; empty for none."""
    found = load_duplicates(manifest.root, len(manifest))
    if not found:
        return ""
    pairs = [f"{manifest.path(sample)} = {manifest.path(first)}" for sample, first in found[:_DUPLICATES_SHOWN]]
    return f"{len(found):,} ({', '.join(pairs)}{', ...' if len(found) > len(pairs) else ''})"


def _classes(dataset: Dataset, manifest: Manifest) -> list[str]:
    """Summarise the labels, and list unlabelled samples and empty classes."""
    lines = [f"classes: {len(dataset.classes):,} ({_first(dataset.classes)})" if dataset.classes else "classes: none"]
    counts = np.bincount(manifest.label[manifest.label >= 0], minlength=len(dataset.classes))
    if dataset.classes and (empty := [name for name, count in zip(dataset.classes, counts, strict=True) if not count]):
        lines.append(f"classes without a sample: {len(empty):,} ({_first(empty)})")
    if unlabelled := dataset.samples - int(counts.sum()):
        lines.append(f"unlabelled: {unlabelled:,} of {dataset.samples:,} samples")
    return lines


def _first(names: Sequence[str]) -> str:
    first = [excerpt(name) for name in names[:_CLASSES_SHOWN]]
    return ", ".join(first + ["..."] * (len(names) > len(first)))


def overview(dataset: Dataset, manifest: Manifest) -> list[tuple[str, str]]:
    """Return the output of `info` on a data set, as names and values."""
    short = np.minimum(manifest.height, manifest.width)
    rows = [
        ("samples", f"{len(manifest):,}"),
        ("shards", f"{len(manifest.counts):,}"),
        (f"{manifest.noun} bytes", f"{dataset.bytes:,}"),
        (f"mean {manifest.noun}", f"{dataset.bytes / len(manifest):,.0f} bytes"),
        ("short side", f"{short.min()} min, {np.median(short):.0f} median, {short.max()} max"),
        *(_videos(manifest.video) if manifest.video is not None else []),
        ("classes", f"{len(dataset.classes):,}"),
    ]
    if dataset.classes:
        counts = np.bincount(manifest.label[manifest.label >= 0], minlength=len(dataset.classes))
        for label in np.argsort(-counts, kind="stable")[:_LARGEST_SHOWN]:
            rows.append((f"  {dataset.classes[label]}", f"{counts[label]:,}"))
        if len(counts) > _LARGEST_SHOWN:
            rows.append(("  ...", f"and {len(counts) - _LARGEST_SHOWN:,} more"))
    return [
        *rows,
        ("rejects", _reasons(manifest.root) or "0"),
        ("ignored files", f"{dataset.ignored:,}"),
        ("duplicates", _duplicates(manifest) or "0"),
        ("identity", manifest.identity),
    ]


def _videos(videos: Videos) -> list[tuple[str, str]]:
    """Return the output of `info` on the videos of a data set."""
    frames, rate = videos.frames[videos.frames > 0], videos.rate[videos.frames > 0]
    seconds = frames / rate
    codecs = ", ".join(f"{codec} {pixels}" for codec, pixels in sorted(videos.codecs))
    return [
        ("videos", f"{len(frames):,}"),
        ("  hours", f"{seconds.sum() / 3600:,.2f}"),
        ("  seconds", f"{seconds.min():.2f} min, {np.median(seconds):.2f} median, {seconds.max():.2f} max"),
        ("  frames", f"{frames.min():,} min, {np.median(frames):,.0f} median, {frames.max():,} max"),
        ("  frames/s", f"{rate.min():.2f} min, {np.median(rate):.2f} median, {rate.max():.2f} max"),
        ("  coded as", codecs),
        *([("  mean frame", f"{videos.jpegs.mean_size:,.0f} bytes of JPEG")] if videos.jpegs else []),
    ]


def summarise(out: str, dataset: Dataset, seconds: float) -> None:
    """Print the result of a build."""
    rate = (dataset.samples + dataset.rejects) / seconds
    manifest = Manifest.load(out)
    say(
        f"{out}: {counted(dataset.samples, 'sample')} in {counted(len(dataset.shards), 'shard')}, "
        f"{dataset.bytes / 1e6:,.1f} MB, {seconds:,.1f} s, {rate:,.0f} {manifest.noun}s/s"
    )
    for line in _classes(dataset, manifest):
        say(line)
    if dataset.rejects:
        say(f"rejects: {dataset.rejects:,} ({_reasons(out)}): see {join(out, REJECTS)}")
    if found := _duplicates(manifest):
        say(f"duplicates: {found}: see {join(out, DUPLICATES)}")
    say(f"next: maskfeat-shards verify {shlex.quote(out)}")


@contextmanager
def progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total), both in `unit`: it draws a bar on a terminal, and prints lines elsewhere."""
    console = Console(stderr=True)
    if console.is_terminal:
        named = TextColumn("{task.description}", markup=False)
        columns = (named, BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(shown(what), total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    last = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            note(f"{what}: {done:,} of {total:,} {unit}")

    yield line
