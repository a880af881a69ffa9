"""A data set under construction: the files that its folder may hold, and the merging of its shards' records.

Work in progress is kept in OUT/.build: `build.json` identifies the input, `<shard>.json` is the record of a finished
shard, and scratch files stay there until they are complete; where OUT is a URL, scratch files stay in the machine's
folder for temporary files until they are uploaded. dataset.json is written last.
"""

import fcntl
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq

from shards.files import ShardError, arrow_file, sha256_of
from shards.labels import Label, number_classes
from shards.manifest import DATASET, MANIFEST, Dataset, Options, Shard
from shards.remote.urls import is_url
from shards.storage import SCRATCH, delete, is_on_web, join, listing, printable_url, read, replacing
from shards.tables.columns import write_manifest
from shards.tables.duplicates import DUPLICATES, find_duplicates
from shards.tables.rejects import REJECTS, write_rejects
from shards.text import one_line

# Part of every fingerprint. Increase it when the same input gives other samples or another order, but not with the
# version of the format: version 2 finishes builds that version 1 began, and recognises those that it finished.
INPUT_VERSION = 1
STAGING = ".build"
_BEGUN = "build"
_REMEDY = "choose another folder or delete this one"


@dataclass(frozen=True)
class Record:
    """The part of the data set that a finished shard adds; if all of its images were rejected, `shard` is None.

    `rows` maps each manifest column but `shard` to its values; `rejects` are rows of rejects.parquet.
    """

    shard: Shard | None
    rows: dict[str, list[Any]]
    rejects: list[dict[str, Any]]

    def dump(self) -> str:
        """Return the record as JSON, which `load` reads."""
        shard = asdict(self.shard) if self.shard else None
        return json.dumps({"shard": shard, "rows": self.rows, "rejects": self.rejects})

    @classmethod
    def load(cls, file: str) -> "Record":
        """Read a record that `dump` wrote, from a file or URL."""
        fields = json.loads(read(file))
        shard = Shard(**fields["shard"]) if fields["shard"] else None
        return cls(shard, fields["rows"], fields["rejects"])


def record_file(out: str, name: str) -> str:
    """Return the location of a file of the work in progress in `out`."""
    return join(out, f"{STAGING}/{name}.json")


def finished_records(out: str) -> set[str]:
    """Return the names of the records in `out`."""
    return {name.removesuffix(".json") for name in listing(join(out, STAGING))}


def refuse_web_server(out: str) -> None:
    """Raise ShardError for a URL that cannot be written to."""
    if is_on_web(out):
        raise ShardError(
            f"{printable_url(out)}: is on a web server, to which no files can be written; give a folder or object store"
        )


def finished(out: str) -> Dataset | None:
    """Return the complete data set in `out`, or None if there is none."""
    return Dataset.load(out) if DATASET in listing(out) else None


def recognise(out: str, found: Dataset | None, fingerprint: str) -> None:
    """Check that `out` holds nothing but this data set: `found`, which is complete, or an unfinished one.

    Removes what a killed build may have left beside a complete one. Raises ShardError for another data set.
    """
    if found:
        if found.fingerprint != fingerprint:
            raise ShardError(f"{out}: contains a data set of other files or options; {_REMEDY}")
        delete(join(out, STAGING))
    elif _has_begun(out) and json.loads(read(record_file(out, _BEGUN)))["fingerprint"] != fingerprint:
        raise ShardError(f"{out}: contains an unfinished build of other files or options; {_REMEDY}")


def refuse_other_files(out: str, names: Iterable[str]) -> None:
    """Raise ShardError when `out` has a file of these names, unless work that would write it has begun there."""
    others = listing(out).keys() & set(names)
    if others and not _has_begun(out):
        raise ShardError(f"{out}: contains other files ({min(others)}); choose another folder or move them away")


def _has_begun(out: str) -> bool:
    return _BEGUN in finished_records(out)


@contextmanager
def explained(out: str, remaining: Callable[[], str]) -> Iterator[None]:
    """Turn errors that stop the writing of `out` into a ShardError that says how to resume and what remains."""
    try:
        yield
    except MemoryError:
        raise ShardError(
            f"{out}: out of memory; run the same command again with fewer workers: finished shards are kept"
        ) from None
    except BrokenProcessPool:
        raise ShardError(
            f"{out}: a worker process died, for lack of memory if the system's log says so; run the same command "
            "again, with fewer workers if it recurs: finished shards are kept"
        ) from None
    except OSError as error:
        raise ShardError(
            f"{error.filename or out}: {error.strerror or error}; {remaining()}: "
            "free space or fix it, and run the same command again; finished shards are kept"
        ) from None


@contextmanager
def scratch_folder(out: str) -> Iterator[Path]:
    """Yield a folder for unfinished files: on the disk of `out` or, for a URL, a temporary one."""
    if is_url(out):
        with TemporaryDirectory(prefix="maskfeat-shards-") as folder:
            yield Path(folder)
    else:
        yield Path(out) / STAGING


@contextmanager
def writing(out: str, fingerprint: str) -> Iterator[None]:
    """Mark `out` as a build in progress until the end; where the disk has locks, no other process may join."""
    with scratch_folder(out) as staging:
        staging.mkdir(parents=True, exist_ok=True)
        with _alone(out, staging):
            for leftover in staging.glob(f"{SCRATCH}*"):  # left by a build that was killed
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            write(record_file(out, _BEGUN), json.dumps({"fingerprint": fingerprint}), staging)
            yield
    delete(join(out, STAGING))


@contextmanager
def _alone(out: str, staging: Path) -> Iterator[None]:
    """Prevent a second build, started while this one runs, from writing the same scratch files."""
    with (staging / "lock").open("a") as file:  # append, so that the target of a link there is not truncated
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ShardError(f"{out}: another build is writing to it; wait for it to end") from None
        except OSError:
            pass  # some network file systems do not have locks
        yield


def finish(
    out: str,
    records: Sequence[str],
    *,
    source: object,
    classes: list[str] | None,
    ignored: int,
    options: Options | None,
    fingerprint: str,
) -> Dataset:
    """Write the manifest, the rejects, the duplicates, then dataset.json, which makes `out` a data set.

    Args:
        out: a folder or URL, in a `writing` block.
        records: the names of the records, in the order of the shards.
        source: the name of the source in messages.
        classes: the class names, by label; None where labels are numbers or names without a number yet.
        ignored: the number of files in the source that were not candidates.
        options: those of a build.
        fingerprint: that of the source and the options.
    """
    shards: list[Shard] = []
    rejects: list[dict[str, Any]] = []
    image_bytes = 0
    number: dict[Label, int] = {}
    if classes is None:
        number, classes = _numbered(out, records)

    def rows() -> Iterator[dict[str, list[Any]]]:
        nonlocal image_bytes
        for name in records:  # one at a time: together they are the build's largest data
            record = Record.load(record_file(out, name))
            rejects.extend(record.rejects)
            if record.shard is not None:
                shards.append(record.shard)
                image_bytes += sum(record.rows["size"])
                yield record.rows | {"label": [number.get(label, label) for label in record.rows["label"]]}

    with scratch_folder(out) as staging:
        with replacing(join(out, MANIFEST), staging) as table:
            write_manifest(table, rows(), jpegs=options is not None and options.frames is not None)
            if not shards:
                first = ""
                if rejects:
                    first = " (the first, {path}: {reason}, {detail})".format(**rejects[0])
                raise ShardError(
                    one_line(
                        f"{source}: none of its {len(rejects)} files can be used{first}; fix them and delete {out}"
                    )
                )
            identity = sha256_of(table)
            duplicates = find_duplicates(table, [join(out, shard.name) for shard in shards])
        with replacing(join(out, REJECTS), staging) as table:
            write_rejects(table, rejects)
        with replacing(join(out, DUPLICATES), staging) as table, arrow_file(table, "wb") as file:
            pq.write_table(duplicates, file, compression="zstd")
        dataset = Dataset(
            samples=sum(shard.samples for shard in shards),
            bytes=image_bytes,
            classes=classes,
            shards=shards,
            manifest_sha256=identity,
            rejects=len(rejects),
            ignored=ignored,
            options=options,
            fingerprint=fingerprint,
        )
        write(join(out, DATASET), dataset.dump(), staging)
    return dataset


def _numbered(out: str, records: Iterable[str]) -> tuple[dict[Label, int], list[str]]:
    """Return the number of each label in the records, and the names of the classes by number."""
    labels: set[Label | None] = set()
    for name in records:
        labels.update(Record.load(record_file(out, name)).rows["label"])
    return number_classes({label for label in labels if label is not None})


def write(file: str, text: str, staging: Path) -> None:
    """Write a text file atomically."""
    with replacing(file, staging) as scratch:
        scratch.write_text(text)
