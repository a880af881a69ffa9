"""Build shards from files. Ours ends with its bytes on the disk, not only in the page cache."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import webdataset as wds

from benchmarks.figures import Figure
from benchmarks.racing import compare, race
from shards.build import build as ours
from shards.media.media import Check

SAMPLES_PER_SHARD = 500  # small enough for two workers to share the test sets evenly


def build(source: Path) -> list[Figure]:
    """Build from the page cache to the disk: ours, webdataset's writer in a loop, and copying the files."""
    files = sorted(path for path in source.rglob("*") if path.is_file())

    def maskfeat_shards(out: Path, check: Check, workers: int) -> None:
        ours(source, out / "set", samples_per_shard=SAMPLES_PER_SHARD, check=check, workers=workers)

    def shard_writer(out: Path) -> None:
        with wds.ShardWriter(f"{out}/%06d.tar", maxcount=SAMPLES_PER_SHARD, verbose=0) as writer:
            for index, path in enumerate(files):
                facts = {"path": str(path.relative_to(source))}
                sample = {"__key__": f"{index:09d}", "jpg": path.read_bytes(), "cls": path.parent.name, "json": facts}
                writer.write(sample)

    def copy(out: Path) -> None:
        for index, path in enumerate(files):
            shutil.copyfile(path, out / str(index))
        subprocess.run(["sync", "--file-system", out], check=True)

    def one_file(out: Path) -> None:
        with (out / "all").open("wb", buffering=0) as file:
            for path in files:
                file.write(path.read_bytes())
            os.fsync(file.fileno())

    def in_a_new_folder(write: Callable[[Path], None]) -> int:
        with tempfile.TemporaryDirectory(dir=source.parent) as out:
            write(Path(out))
        return len(files)

    contestants: dict[str, Callable[[Path], None]] = {
        "this build": partial(maskfeat_shards, check="decode", workers=1),
        "the same, 2 workers": partial(maskfeat_shards, check="decode", workers=2),
        "the same, headers checked, 1 worker": partial(maskfeat_shards, check="header", workers=1),
        "the same, headers checked, 2 workers": partial(maskfeat_shards, check="header", workers=2),
        "webdataset.ShardWriter, nothing checked, not flushed to the disk": shard_writer,
        "copy of the files, flushed to the disk": copy,
        "the files in one, flushed to the disk": one_file,
    }
    rates = race({name: partial(in_a_new_folder, write) for name, write in contestants.items()})
    return [
        compare(
            "build, every image decoded, 1 worker", "images/s", rates, limits=("the files in one, flushed to the disk",)
        )
    ]
