"""A data set in the making: what may be in its folder, and how the records of its shards become one.

Work in progress lives in OUT/.build: `build.json` names the input, `<shard>.json` is the record of a finished
shard, and scratch files wait there until they are complete. dataset.json comes last.
"""

import fcntl
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from shards import manifest
from shards.duplicates import find_duplicates
from shards.files import ShardError, replacing, sha256_of
from shards.manifest import Dataset, Options, Shard
from shards.tarfiles import shard_file

STAGING = ".build"
_REMEDY = "choose another folder or delete this one"


@dataclass(frozen=True)
class Record:
    """What a finished shard adds to the data set; one whose images were all rejected has no `shard`.

    `rows` maps each manifest column but `shard` to its values; `rejects` are rows of rejects.parquet.
    """

    shard: Shard | None
    rows: dict[str, list[Any]]
    rejects: list[dict[str, Any]]

    def dump(self) -> str:
        """As JSON, which `load` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Record":
        """The inverse of `dump`, from a file."""
        fields = json.loads(path.read_text())
        shard = Shard(**fields["shard"]) if fields["shard"] else None
        return cls(shard, fields["rows"], fields["rejects"])


def is_finished(out: Path, fingerprint: str) -> bool:
    """Whether `out` holds this data set, complete. Raises ShardError when it holds another, be it unfinished."""
    if (out / manifest.DATASET).exists():
        if Dataset.load(out).fingerprint != fingerprint:
            raise ShardError(f"{out}: holds a data set of other images or options; {_REMEDY}")
        shutil.rmtree(out / STAGING, ignore_errors=True)  # a kill may have left it
        return True
    started = out / STAGING / "build.json"
    if started.exists() and json.loads(started.read_text())["fingerprint"] != fingerprint:
        raise ShardError(f"{out}: holds an unfinished build of other images or options; {_REMEDY}")
    return False


def refuse_other_files(out: Path, files: Iterable[Path]) -> None:
    """Raises ShardError when any of the files exists, unless work that would have written it has begun in `out`."""
    if (out / STAGING / "build.json").exists():
        return
    for file in files:
        if file.name != STAGING and file.exists():
            raise ShardError(f"{out}: holds other files ({file.name}); choose another folder or move them away")


@contextmanager
def explained(out: Path, remaining: Callable[[], str]) -> Iterator[None]:
    """Turns what may stop the writing of `out` into a ShardError that tells how to go on and what remains."""
    try:
        yield
    except (BrokenProcessPool, MemoryError):
        raise ShardError(
            f"{out}: a worker died, most likely for lack of memory; run the same command again, with fewer "
            "workers if it recurs: finished shards are kept"
        ) from None
    except OSError as error:
        raise ShardError(
            f"{error.filename or out}: {error.strerror or error}; {remaining()}: "
            "make room or mend it and run the same command again, finished shards are kept"
        ) from None


@contextmanager
def writing(out: Path, fingerprint: str) -> Iterator[Path]:
    """Yields the folder for work in progress, which no other process uses then, and removes it at the end."""
    staging = out / STAGING
    staging.mkdir(parents=True, exist_ok=True)
    with _alone(staging):
        write(staging / "build.json", json.dumps({"fingerprint": fingerprint}), staging)
        yield staging
    shutil.rmtree(staging)


@contextmanager
def _alone(staging: Path) -> Iterator[None]:
    """Keeps a second build, started while this one runs, from writing the same scratch files."""
    with (staging / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ShardError(f"{staging.parent}: another build is writing it; let it end") from None
        except OSError:
            pass  # some network file systems have no locks
        yield


def finish(
    out: Path,
    records: list[Path],
    *,
    source: object,
    classes: list[str] | None,
    ignored: int,
    options: Options | None,
    fingerprint: str,
) -> Dataset:
    """Writes the manifest, the rejects, the duplicates, then dataset.json, which makes `out` a data set.

    Args:
        out: the folder, in a `writing` block.
        records: a file for each shard, in the order of the shards.
        source: how to name the source in messages.
        classes: their names, or None to number them up to the largest label.
        ignored: files of the source that were no candidates.
        options: of a build.
        fingerprint: of the source and the options.
    """
    staging = out / STAGING
    shards: list[Shard] = []
    rejects: list[dict[str, Any]] = []
    image_bytes, largest_label = 0, -1

    def rows() -> Iterator[dict[str, list[Any]]]:
        nonlocal image_bytes, largest_label
        for path in records:  # one record at a time: together they are the largest thing in the build
            record = Record.load(path)
            rejects.extend(record.rejects)
            if record.shard is not None:
                shards.append(record.shard)
                image_bytes += sum(record.rows["size"])
                largest_label = max(largest_label, *(-1 if label is None else label for label in record.rows["label"]))
                yield record.rows

    with replacing(out / manifest.MANIFEST, staging) as scratch:
        manifest.write_manifest(scratch, rows())
        if not shards:
            first = ""
            if rejects:
                first = " (the first, {path}: {reason}, {detail})".format(**rejects[0])
            raise ShardError(
                f"{source}: none of its {len(rejects)} images can be used{first}; mend them and delete {out}"
            )
    with replacing(out / manifest.REJECTS, staging) as scratch:
        manifest.write_rejects(scratch, rejects)
    with replacing(out / manifest.DUPLICATES, staging) as scratch:
        files = [shard_file(out, shard.name) for shard in shards]
        pq.write_table(find_duplicates(out / manifest.MANIFEST, files), scratch, compression="zstd")
    dataset = Dataset(
        samples=sum(shard.samples for shard in shards),
        bytes=image_bytes,
        classes=[str(label) for label in range(largest_label + 1)] if classes is None else classes,
        shards=shards,
        manifest_sha256=sha256_of(out / manifest.MANIFEST),
        rejects=len(rejects),
        ignored=ignored,
        options=options,
        fingerprint=fingerprint,
    )
    write(out / manifest.DATASET, dataset.dump(), staging)
    return dataset


def write(path: Path, text: str, staging: Path) -> None:
    """Writes a text file, complete or not at all."""
    with replacing(path, staging) as scratch:
        scratch.write_text(text)
