"""Describes WebDataset tars made elsewhere, by img2dataset or for timm for instance, as a data set.

The tars stay as they are and where they are, so an image that would have to be rewritten is rejected, as is
any that `build` would reject. Nothing is unpacked, no link followed, nothing unpickled.
"""

import glob
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import braceexpand
import google_crc32c

from shards import manifest
from shards.assembly import (
    Record,
    explained,
    finish,
    finished_records,
    is_finished,
    record_file,
    refuse_other_files,
    scratch_folder,
    write,
    writing,
)
from shards.check import DEFAULT_MAX_PIXELS, Checked, Rejected, check_image
from shards.engines import run
from shards.files import ShardError, sha256_of
from shards.labels import MAX_LABEL
from shards.listing import is_url
from shards.manifest import MANIFEST_SCHEMA, Dataset, Shard
from shards.storage import (
    as_local,
    has_query,
    join,
    printable_url,
    read,
    replacing,
    shows_credentials,
    size_of,
    why_unsupported,
)
from shards.tarfiles import Sample, dali_index, idx_name, samples_of
from shards.text import printable

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png"})
_MAX_METADATA = 2**20  # bytes of a .cls or .json that are read at most


@dataclass(frozen=True)
class _Job:
    """A tar, by its name in the data set, the name of its record, and whether it has that already."""

    name: str
    record: str
    recorded: bool


def index_tars(
    urls: Sequence[str],
    out: str | Path,
    *,
    workers: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Dataset, bool]:
    """Checks every image in tars made elsewhere and makes `out` a data set of them, or goes on with that.

    Args:
        urls: paths, or URLs, of tars, in the order of the data set. Braces as in `{000..099}`
            stand for several of them, and so do `*`, `?` and `[]` in paths.
        out: folder or URL for the manifest; a folder may hold the tars, which are then named relative to it.
        workers: processes, see `build`.
        max_pixels: larger images are rejected.
        progress: called with (tars done, tars in all) after every tar.

    Returns:
        The description of the data set, and whether it had been finished before.

    Raises:
        ShardError: a tar or `out` cannot be used, or writing failed; then a re-run goes on from there.
    """
    if min(max_pixels, 1 if workers is None else workers) < 1:
        raise ShardError(f"workers={workers}, max_pixels={max_pixels}: both must be 1 or more")
    out = str(out)
    names = [_name(path, out) for path in _expand(urls)]
    sizes = [None if is_url(name) else Path(join(out, name)).stat().st_size for name in names]
    facts = [manifest.VERSION, "index", max_pixels, names, sizes]
    fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    done = 0

    def remaining() -> str:
        return f"{len(names) - done:,} tars are still to be read"

    with explained(out, remaining):
        if is_finished(out, fingerprint):
            return Dataset.load(out), True
        written = [manifest.MANIFEST, manifest.REJECTS, manifest.DUPLICATES]
        refuse_other_files(out, [*written, *map(idx_name, names)])
        with writing(out, fingerprint):
            recorded = finished_records(out)
            records = [f"tar-{number:06d}" for number in range(len(names))]
            jobs = [_Job(name, record, record in recorded) for name, record in zip(names, records, strict=True)]
            for done, _ in enumerate(run(partial(_index_or_keep, out, max_pixels), jobs, workers), 1):
                progress(done, len(jobs))
            dataset = finish(
                out,
                records,
                source=", ".join(urls[:3]),
                classes=None,
                ignored=0,
                options=None,
                fingerprint=fingerprint,
            )
    return dataset, False


def _expand(patterns: Sequence[str]) -> list[str]:
    """The tars that the patterns stand for, each once."""
    tars: list[str] = []
    for pattern in patterns:
        try:
            expanded = [pattern] if _is_file(pattern) else list(braceexpand.braceexpand(pattern))
        except ValueError:
            raise ShardError(f"{pattern}: its braces do not match; correct them") from None
        for one in expanded:
            if is_url(one):
                if shows_credentials(one) or has_query(one):
                    raise ShardError(
                        f"{printable_url(one)}: holds credentials or a query, which dataset.json would show; leave "
                        "them out, credentials come from the environment"
                    )
                why = why_unsupported(one)
                if why is not None:
                    raise ShardError(f"{printable_url(one)}: cannot be read: {why}")
                tars.append(one)
            elif _is_file(one):
                tars.append(one)
            else:
                found = sorted(path for path in glob.glob(one, recursive=True) if _is_file(path))  # noqa: PTH207
                if not found:
                    raise ShardError(f"{one}: no such tar; correct the path or the pattern")
                tars += found
    return list(dict.fromkeys(tars))


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # a name that is too long, or a folder that is closed
        return False


def _name(tar: str, out: str) -> str:
    """How the data set in `out` names a tar."""
    if is_url(tar):
        return tar
    path = Path(tar).parent.resolve() / Path(tar).name
    if is_url(out) or not path.is_relative_to(Path(out).resolve()):
        return str(path)
    return str(path.relative_to(Path(out).resolve()))


def _index_or_keep(out: str, max_pixels: int, job: _Job) -> None:
    if job.recorded:
        shard = Record.load(record_file(out, job.record)).shard
        if shard is None or size_of(join(out, idx_name(shard.name))) is not None:
            return
    with scratch_folder(out) as staging:
        record = _index(out, job.name, max_pixels, staging)
        write(record_file(out, job.record), record.dump(), staging)


def _index(out: str, name: str, max_pixels: int, staging: Path) -> Record:
    """Checks the samples of one tar and writes the `.idx` of those that pass."""
    rows: dict[str, list[Any]] = {name: [] for name in MANIFEST_SCHEMA.names if name != "shard"}
    rejects: list[dict[str, Any]] = []
    kept: list[Sample] = []
    with as_local(join(out, name), staging) as tar:
        for sample in samples_of(tar):
            try:
                extension, image, label = _check(tar, sample, max_pixels)
            except Rejected as error:
                path = printable(f"{name}/{sample.key}")
                rejects.append({"path": path, "reason": error.reason, "detail": printable(error.detail), "size": None})
                continue
            kept.append(sample)
            offset, size, member = sample.members[extension]
            rows["key"].append(printable(sample.key))
            rows["offset"].append(offset)
            rows["size"].append(size)
            rows["label"].append(label)
            rows["height"].append(image.height)
            rows["width"].append(image.width)
            rows["crc32c"].append(google_crc32c.value(image.data))
            rows["path"].append(printable(member))
        if not kept:
            return Record(None, rows, rejects)
        shard = Shard(name, len(kept), tar.stat().st_size, sha256_of(tar))
    with replacing(join(out, idx_name(name)), staging) as scratch:
        scratch.write_text(dali_index(kept), "utf-8", "surrogateescape")
    return Record(shard, rows, rejects)


def _check(tar: Path, sample: Sample, max_pixels: int) -> tuple[str, Checked, int | None]:
    """The extension of a sample's image, the image and its label. Raises Rejected for a sample of no use."""
    if sample.unsafe is not None:
        raise Rejected("unsafe member", sample.unsafe)
    extensions = [extension for extension in sample.members if extension.lower() in IMAGE_EXTENSIONS]
    if len(extensions) != 1:
        raise Rejected("not one image", f"{len(extensions)} members end in .{', .'.join(sorted(IMAGE_EXTENSIONS))}")
    data = _member(tar, sample, extensions[0])
    image = check_image(data, max_pixels, None)
    if image.data is not data:
        raise Rejected("needs rewriting", "is no 8-bit grey or RGB JPEG, nor such a PNG without transparency and EXIF")
    return extensions[0], image, _label(tar, sample)


def _label(tar: Path, sample: Sample) -> int | None:
    """The number in `.cls`, or else `label` in `.json` where that is an integer."""
    source = "cls" if "cls" in sample.members else "json"
    if source not in sample.members:
        return None
    if sample.members[source][1] > _MAX_METADATA:
        raise Rejected("bad label", f".{source} has more than {_MAX_METADATA} bytes")
    text = _member(tar, sample, source)
    try:
        if source == "cls":
            if not re.fullmatch(rb"\s*[0-9]+\s*", text):
                raise ValueError("is not a number")
            label = int(text)
        else:
            facts = json.loads(text)
            value = facts.get("label") if isinstance(facts, dict) else None
            if not isinstance(value, int) or isinstance(value, bool):
                return None
            label = value
        if not 0 <= label <= MAX_LABEL:
            raise ValueError(f"is not in 0 to {MAX_LABEL}")
    except (ValueError, RecursionError) as error:
        raise Rejected("bad label", f".{source}: {error}") from None
    return label


def _member(tar: Path, sample: Sample, extension: str) -> bytes:
    offset, size, _ = sample.members[extension]
    return read(str(tar), offset, size)
