"""Print the progress of the commands, and summaries of a data set."""

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shards.interrupts import STATUS
from shards.manifest import Dataset, Manifest
from shards.storage import join
from shards.tables.duplicates import DUPLICATES, load_duplicates
from shards.tables.rejects import HELD_OUT, REJECTS, count_rejects, example
from shards.tables.videos import Videos
from shards.terminal import note, say, shown
from shards.text import counted, excerpt, size_of

_SECONDS_BETWEEN_LINES = 20.0
_DUPLICATES_SHOWN = 3
_CLASSES_SHOWN = 5
_REMEDIES = {"transparent": "--alpha white", "16-bit": "--depth scale"}  # of `build`, by the reason of rejects
_LARGEST_SHOWN = 10  # classes listed with their counts


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
    """Summarise the labels: samples of each class, empty classes, unlabelled samples."""
    lines = [f"classes: {len(dataset.classes):,} ({_first(dataset.classes)})" if dataset.classes else "classes: none"]
    table = _largest_classes(dataset, manifest)
    width = max((len(count) for _, count in table), default=0)
    lines += [f"  {count:>{width}} {name}" for name, count in table]
    counts = _counts(dataset, manifest)
    if empty := [name for name, count in zip(dataset.classes, counts, strict=False) if not count]:
        lines.append(f"classes without a sample: {len(empty):,} ({_first(empty)})")
    return [*lines, f"unlabelled: {dataset.samples - counts.sum():,} of {counted(dataset.samples, 'sample')}"]


def _counts(dataset: Dataset, manifest: Manifest) -> npt.NDArray[np.int64]:
    """Return the number of samples of each class."""
    return np.bincount(manifest.label[manifest.label >= 0], minlength=len(dataset.classes))


def _largest_classes(dataset: Dataset, manifest: Manifest) -> list[tuple[str, str]]:
    """Return the name and the count of the classes with most samples, and in a last row how many more there are."""
    counts = _counts(dataset, manifest)[: len(dataset.classes)]
    order = np.argsort(-counts, kind="stable")
    rows = [(excerpt(dataset.classes[label]), f"{counts[label]:,}") for label in order[:_LARGEST_SHOWN]]
    return [*rows, (f"and {len(order) - _LARGEST_SHOWN:,} more", "...")] if len(order) > _LARGEST_SHOWN else rows


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
    return [
        *rows,
        *((f"  {name}", count) for name, count in _largest_classes(dataset, manifest)),
        ("rejects", _reasons(manifest.root) or "0"),
        ("ignored files", f"{dataset.ignored:,}"),
        ("duplicates", _duplicates(manifest) or "0"),
        ("identity", manifest.identity),
    ]


def figures(dataset: Dataset, manifest: Manifest) -> dict[str, Any]:
    """Return the output of `info --json` on a data set: counts, bytes, and pixels of the short side."""
    short = np.minimum(manifest.height, manifest.width)
    counts = _counts(dataset, manifest)
    found: dict[str, Any] = {
        "samples": len(manifest),
        "shards": len(manifest.counts),
        "bytes": dataset.bytes,
        "short_side": {"min": int(short.min()), "median": float(np.median(short)), "max": int(short.max())},
        "classes": dict(zip(dataset.classes, counts.tolist(), strict=False)),
        "unlabelled": dataset.samples - int(counts.sum()),
        "rejects": dict(count_rejects(manifest.root)),
        "ignored_files": dataset.ignored,
        "duplicates": len(load_duplicates(manifest.root, len(manifest))),
        "identity": manifest.identity,
    }
    if manifest.video is not None:
        frames, rate = manifest.video.frames, manifest.video.rate
        known = frames > 0
        found["videos"] = {
            "count": int(known.sum()),
            "frames": int(frames[known].sum()),
            "seconds": float((frames[known] / rate[known]).sum()),
        }
    return found


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


def summarise(out: str, dataset: Dataset, seconds: float | None) -> None:
    """Print the result of a build, which took `seconds`, None where that was not measured."""
    manifest = Manifest.load(out)
    speed = ""
    if seconds is not None:
        speed = f", {seconds:,.1f} s, {(dataset.samples + dataset.rejects) / seconds:,.0f} {manifest.noun}s/s"
    say(
        f"{out}: {counted(dataset.samples, 'sample')} in {counted(len(dataset.shards), 'shard')}, "
        f"{size_of(dataset.bytes)}{speed}"
    )
    for line in _classes(dataset, manifest):
        say(line)
    if dataset.rejects:
        reasons = count_rejects(out)
        say(f"rejects: {dataset.rejects:,} ({_reasons(out)}): see {join(out, REJECTS)}")
        for reason, option in _REMEDIES.items():
            if dataset.options and reason in reasons:
                say(f"  {reason}: {option} accepts such images")
    if found := _duplicates(manifest):
        say(f"duplicates: {found}: see {join(out, DUPLICATES)}")
    say(f"{out} is complete and usable; next: maskfeat-shards verify {shlex.quote(out)}")


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


@contextmanager
def resumable(*outs: str) -> Iterator[None]:
    """Turn an interrupt into a line that says how to resume, and exit status 130."""
    try:
        yield
    except KeyboardInterrupt:
        note(f"interrupted: run the same command again to resume; finished shards in {' and '.join(outs)} are kept")
        raise typer.Exit(STATUS) from None


def judge(roots: Sequence[str], max_rejects: int) -> None:
    """Exit with status 1, and a line that says why, where the data sets together have more rejects than allowed.

    Samples that the training set leaves out for the validation set are not counted.
    """
    counts = {root: count_rejects(root).total() - count_rejects(root)[HELD_OUT] for root in roots}
    rejects = sum(counts.values())
    if rejects > max_rejects:
        root = next(root for root, count in counts.items() if count)
        note(
            f"{' and '.join(roots)} {'is' if len(roots) == 1 else 'are'} complete and usable, but "
            f"{'has' if len(roots) == 1 else 'have'} {counted(rejects, 'reject')} where --max-rejects allows "
            f"{max_rejects:,} (such as {example(root)}); {join(root, REJECTS)} lists them with the reasons"
        )
        raise typer.Exit(1)
