"""Files that are too large to be read, or for which there is no memory, cost themselves and nothing else."""

from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from making_images import encoded, make_tar, make_tree, picture
from PIL import Image

from shards.build import build
from shards.files import ShardError
from shards.index import index_tars
from shards.manifest import Manifest
from shards.storage import read
from shards.tables.rejects import count_rejects


def test_a_huge_file_is_one_reject_that_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_tree(tmp_path / "source", 4)
    with (source / "ant" / "huge.jpg").open("wb") as file:
        file.truncate(2**43)  # sparse: no memory would hold it
    build(source, tmp_path / "out", workers=1)
    (reject,) = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    detail = f"{2**43} bytes, more than {2**29}"
    assert reject == {"path": "ant/huge.jpg", "reason": "too many bytes", "detail": detail, "size": 2**43}
    assert len(Manifest.load(tmp_path / "out")) == 4


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (BrokenProcessPool(), "a worker process died, for lack of memory if the system's log says so"),
        (MemoryError(), "out of memory; run the same command again with fewer workers"),
    ],
)
def test_the_end_of_a_worker_is_one_line_that_says_what_is_known(
    error: Exception, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("shards.making.jobs.write_shard", fail)
    with pytest.raises(ShardError, match=cause):
        build(make_tree(tmp_path / "source", 2), tmp_path / "out", workers=1)


def test_an_image_that_cannot_be_held_when_it_is_read_is_one_reject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_tree(tmp_path / "source", 3)

    def reading(file: str, *place: Any, **options: Any) -> bytes:
        if file.endswith("001.JPG"):
            raise MemoryError
        return read(file, *place, **options)

    monkeypatch.setattr("shards.making.shard.read", reading)
    build(source, tmp_path / "out", workers=1)
    assert count_rejects(tmp_path / "out") == {"needs too much memory": 1}


def test_a_huge_member_of_a_tar_is_one_reject_for_build_and_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)), "PNG")
    members = {"0.jpg": encoded(picture(0), "JPEG"), "1.png": noise}
    tar = make_tar(tmp_path / "0.tar", members)
    tars = make_tar(tmp_path / "tars.tar", {"a.tar": tar.read_bytes()})
    monkeypatch.setattr("shards.media.media.MAX_BYTES", len(noise) - 1)

    def reading(file: str, offset: int | None = None, size: int | None = None, **options: Any) -> bytes:
        assert size != len(noise), "was read"
        return read(file, offset, size, **options)

    monkeypatch.setattr("shards.making.shard.read", reading)
    monkeypatch.setattr("shards.tars.check.read", reading)
    build(tars, tmp_path / "built", workers=1)
    index_tars([str(tar)], tmp_path / "indexed", workers=1)
    for out in (tmp_path / "built", tmp_path / "indexed"):
        assert (len(Manifest.load(out)), count_rejects(out)) == (1, {"too many bytes": 1})
