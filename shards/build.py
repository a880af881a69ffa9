"""Build a data set: list the source, shuffle, assign samples to shards, write the shards in parallel, and index them.

The contents of a shard depend on the listing and the options alone. The number of workers, kills and re-runs therefore
do not change a byte of the result.
"""

import errno
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path

from shards.files import ShardError, real
from shards.making.assembly import (
    INPUT_VERSION,
    explained,
    finish,
    finished,
    finished_records,
    recognise,
    refuse_other_files,
    refuse_web_server,
    writing,
)
from shards.making.engines import Engine, run
from shards.making.holdout import HeldOut, Validation, hold_out
from shards.making.jobs import assign, bytes_of, write_or_keep
from shards.manifest import Dataset, Options
from shards.media.formats import remedy
from shards.media.media import DEFAULT_MAX_PIXELS, Alpha, Check, Depth, Frames
from shards.remote.urls import is_url
from shards.sources.folder import refuse_parts
from shards.sources.listing import Listing, without_decoder
from shards.sources.source import list_source
from shards.storage import listing as files_in
from shards.text import counted, portable, printable, size_of

Progress = Callable[[int, int], None]  # (images done, images in total)


@dataclass(frozen=True)
class _Part:
    """A data set to build: its folder, its candidates, by their place in the listing, and its options.

    `held_out` is the validation set whose samples are left out.
    """

    out: str
    chosen: Sequence[int]
    options: Options
    held_out: HeldOut | None = None


def build(
    source: Path,
    out: str | Path,
    *,
    samples_per_shard: int = 1000,
    resize: int | None = None,
    workers: int | None = None,
    seed: int = 0,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    check: Check = "decode",
    frames: Frames | None = None,
    frame_stride: int = 1,
    alpha: Alpha = "reject",
    depth: Depth = "reject",
    validation: Validation | None = None,
    engine: Engine = run,
    progress: Progress = lambda done, total: None,
    note: Callable[[str], None] = lambda line: None,
) -> tuple[Dataset, bool]:
    """Build `out` from the images in `source`, or finish an interrupted build of the same input.

    Args:
        source: the input of `list_source`: a folder, a tar of class tars, or a table of paths and URLs.
        out: folder, or URL of an object store, to create. It may hold the same build, unfinished or finished.
        samples_per_shard: images assigned to a shard; rejected ones leave it smaller.
        resize: shrink the short side to this many pixels, see `CheckOptions`.
        workers: processes, by default one per CPU core; 1 works in this process. A script that asks for more
            needs the usual `if __name__ == "__main__"` guard. With `run_on_ray`: the most shards in progress at a time.
        seed: seed of the order of the images over the shards.
        max_pixels: larger images are rejected.
        check: how thoroughly images are checked, see `CheckOptions`.
        frames: how videos are stored, see `CheckOptions`.
        frame_stride: with `frames`, the stride of the frames that are stored, see `CheckOptions`.
        alpha: how to treat images with transparent pixels, see `CheckOptions`.
        depth: how to treat images of more than 8 bits per channel, see `CheckOptions`.
        validation: the hold-out, which is built first, as a data set of its own.
        engine: runs the jobs; on other machines, `source` and `out` must be reachable there.
        progress: called after every shard.
        note: called with each line about the source that the user should see before the work begins.

    Returns:
        The description of the data set in `out`, and whether everything was already finished.

    Raises:
        ShardError: the source or `out` cannot be used, or writing failed; a re-run then continues from there.
    """
    source, out = source.absolute(), _absolute(out)
    if validation is not None:
        validation = replace(validation, out=_absolute(validation.out))
    options = Options(samples_per_shard, resize, max_pixels, seed, check, frames, frame_stride, alpha, depth)
    numbers = [n for n in (samples_per_shard, max_pixels, workers, resize, frame_stride) if n is not None]
    if not (min(numbers) >= 1 and max(numbers) < 2**63):  # the range that dataset.json allows
        raise ShardError(f"{options}, workers={workers}: all numbers except the seed must be from 1 to 2^63 - 1")
    if frame_stride > 1 and frames is None:
        raise ShardError(f"--frame-stride {frame_stride}: belongs to --frames jpeg; give both, or neither")
    _refuse_overlaps(source, out, *([validation.out] if validation else []))
    listing = list_source(source, validation.group_by if validation else None)
    missing = without_decoder(listing.paths)
    remedies = [f"{source}: {counted(n, f'{kind} file')} cannot be read: {remedy(kind)}" for kind, n in missing.items()]
    for line in [*listing.notes, *remedies]:
        note(line)
    build_part = partial(_build, source, listing, sorted(missing), engine=engine, workers=workers)
    everything = _Part(out, range(len(listing.paths)), options)
    if validation is None:
        return build_part(everything, progress)
    return _build_both(listing, everything, validation, build_part, progress)


def _absolute(out: str | Path) -> str:
    return str(out) if is_url(str(out)) else str(Path(out).absolute())


def _build_both(
    listing: Listing,
    everything: _Part,
    validation: Validation,
    build_part: Callable[[_Part, Progress], tuple[Dataset, bool]],
    progress: Progress,
) -> tuple[Dataset, bool]:
    """Build the validation set, and then the training set from the other candidates; see `build`."""
    out, total = everything.out, len(everything.chosen)
    options = replace(everything.options, validation=validation.share, group_by=validation.group_by)
    chosen = hold_out(listing, validation, options.seed)
    if not finished(out):  # find out before the validation set is written
        refuse_other_files(out, files_in(out))
    part = _Part(validation.out, chosen, replace(options, part="validation"))
    built, finished_before = build_part(part, lambda done, _: progress(done, total))
    rest = sorted(set(everything.chosen).difference(chosen))
    held_out = HeldOut(validation.out, built.manifest_sha256)
    part = _Part(out, rest, replace(options, part="training"), held_out)
    dataset, trained_before = build_part(part, lambda done, _: progress(len(chosen) + done, total))
    return dataset, finished_before and trained_before


def _build(
    source: Path,
    listing: Listing,
    missing: list[str],
    part: _Part,
    progress: Progress,
    *,
    engine: Engine,
    workers: int | None,
) -> tuple[Dataset, bool]:
    """Build a part of a listing, or finish it; see `build`. `missing` are the formats that have no decoder."""
    out, options, classes = part.out, part.options, _names(listing)
    unwritten = bytes_of(listing.sizes[index] for index in part.chosen)

    def remaining() -> str:
        return f"{size_of(unwritten)} of files are still to be written"

    with explained(out, remaining):
        found = finished(out)
        # Files other than images may come and go without making it another data set
        fingerprint = _fingerprint(listing, part, found.ignored if found else listing.ignored, missing)
        recognise(out, found, fingerprint)
        if found:
            return found, True
        refuse_other_files(out, files_in(out))
        if (source.is_dir() or listing.offsets) and not listing.rows and not finished_records(out):
            refuse_parts(listing)
        with writing(out, fingerprint):
            jobs = assign(listing, part.chosen, options, finished_records(out))
            unwritten = sum(bytes_of(item.size for item in job.items) for job in jobs if not job.recorded)
            # Only a copy of known size, to a disk, can be compared with the free space.
            copied = options.resize is None and options.frames is None
            if copied and not is_url(out) and unwritten > shutil.disk_usage(out).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done = 0
            for images, written in engine(partial(write_or_keep, out, options, part.held_out), jobs, workers):
                done += images
                unwritten -= written
                progress(done, len(part.chosen))
            dataset = finish(
                out,
                [job.name for job in jobs],
                source=source,
                classes=classes,
                ignored=listing.ignored,
                options=options,
                fingerprint=fingerprint,
            )
    return dataset, False


def _names(listing: Listing) -> list[str]:
    """Return the class names for dataset.json. Raises ShardError where two classes would share a name."""
    names = Counter(printable(name) for name in listing.classes)
    for name, count in names.items():
        if count > 1:
            raise ShardError(
                f"{listing.root}: {count} classes would be called {name}, one of which has bytes that are not UTF-8; "
                "rename it"
            )
    return list(names)


def _refuse_overlaps(source: Path, *outs: str) -> None:
    """Raise ShardError where the source and the data sets that are to be made do not lie apart."""
    for out in outs:
        refuse_web_server(out)
    places = [(str(source), real(source)), *((out, real(out)) for out in outs if not is_url(out))]
    for (other, first), (out, second) in combinations(places, 2):
        if first.is_relative_to(second) or second.is_relative_to(first):
            raise ShardError(f"{out}: contains {other} or is inside it; choose a separate folder")


def _fingerprint(listing: Listing, part: _Part, ignored: int, missing: list[str]) -> str:
    """Return the SHA-256 of everything that decides the output and is known without reading the images.

    Names are encoded as UTF-8, whatever the locale. `missing` are the formats in the listing that have no decoder.
    """
    classes = [portable(name) for name in listing.classes]
    facts: list[object] = [INPUT_VERSION, part.options.facts(), ignored, classes, listing.labels]
    facts += [fact for fact in (missing, dict(listing.tables)) if fact]
    if part.options.part is not None:
        facts += [list(part.chosen), part.held_out.identity if part.held_out else None]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for path, size in zip(listing.paths, listing.sizes, strict=True):
        digest.update(os.fsencode(path) + b"\0" + (b"?" if size is None else b"%d" % size) + b"\0")
    return digest.hexdigest()
