from pathlib import Path

import pytest
from making_images import make_tree

from shards.build import build
from shards.files import ShardError
from shards.manifest import Manifest
from shards.verify import verify


@pytest.fixture
def built(tmp_path: Path) -> Path:
    source = make_tree(tmp_path / "source", 12)
    (source / "ant" / "bad.jpg").write_bytes(b"")
    build(source, tmp_path / "out", samples_per_shard=5, workers=1)
    return tmp_path / "out"


def problems(root: Path) -> list[str]:
    assert verify(root, workers=1) == verify(root, workers=3)
    return [str(problem) for problem in verify(root)]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def test_a_good_data_set_has_no_problems_and_progress_reaches_the_end(built: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert verify(built, 2, lambda done, total: seen.append((done, total))) == []
    assert seen == [(done, 12) for done in Manifest.load(built).counts.cumsum()]
    assert seen[-1] == (12, 12)


@pytest.mark.parametrize("sample", [0, 4, 6, 11])
@pytest.mark.parametrize("where", ["first", "last"])
def test_a_flipped_byte_in_an_image_names_shard_key_and_path(built: Path, sample: int, where: str) -> None:
    manifest = Manifest.load(built)
    name = manifest.shard_names[manifest.shard[sample]]
    inside = 0 if where == "first" else manifest.size[sample] - 1
    flip(built / name, manifest.offset[sample] + inside)
    count = manifest.counts[manifest.shard[sample]]
    assert problems(built) == [
        f"{name}: has other bytes: 1 of its {count} samples are damaged",
        f"{name}: sample {manifest.key(sample)} ({manifest.path(sample)}) is damaged",
    ]


def test_a_flipped_byte_outside_the_images_names_the_shard(built: Path) -> None:
    manifest = Manifest.load(built)
    for at in (0, int(manifest.offset[0]) - 1, int(manifest.offset[0] + manifest.size[0]), -1):
        flip(built / "shard-000000.tar", at)
        assert problems(built) == [
            "shard-000000.tar: has other bytes: all its images are intact, so the damage is in headers, "
            "labels or padding"
        ]
        flip(built / "shard-000000.tar", at)
    assert problems(built) == []


def test_a_truncated_tar_names_the_samples_that_are_lost(built: Path) -> None:
    manifest = Manifest.load(built)
    tar = built / "shard-000000.tar"
    size = tar.stat().st_size
    keep = int(manifest.offset[3]) + 10
    tar.write_bytes(tar.read_bytes()[:keep])
    count = manifest.counts[0]
    assert problems(built) == [
        f"shard-000000.tar: has {keep} bytes instead of {size}: {count - 3} of its {count} samples are damaged"
    ] + [
        f"shard-000000.tar: sample {manifest.key(sample)} ({manifest.path(sample)}) is damaged"
        for sample in range(3, count)
    ]
    tar.write_bytes(b"")
    assert problems(built)[0].startswith(f"shard-000000.tar: has 0 bytes instead of {size}: {count} of its")


def test_missing_and_stray_files_are_named(built: Path) -> None:
    (built / "shard-000001.tar").rename(built / "shard-000009.tar")
    (built / "shard-000002.idx").unlink()
    (built / "rejects.parquet").unlink()
    assert problems(built) == [
        f"dataset.json: {built}/rejects.parquet: is missing; copy it from the original data set or build it again",
        "shard-000001.tar: cannot be read: No such file or directory",
        "shard-000002.idx: cannot be read: No such file or directory",
        "shard-000009.tar: is not part of the data set; move it away",
    ]


def test_an_index_of_another_shard_is_named(built: Path) -> None:
    (built / "shard-000000.idx").write_bytes((built / "shard-000001.idx").read_bytes())
    (built / "shard-000002.idx").write_bytes(b"\xff\xfe")
    assert problems(built) == [
        "shard-000000.idx: does not describe shard-000000.tar; build the data set again",
        "shard-000002.idx: does not describe shard-000002.tar; build the data set again",
    ]


@pytest.mark.parametrize(
    ("right", "wrong", "what"),
    [
        ('"samples": 12', '"samples": 13', "its number of samples is not that of the manifest"),
        ('"bytes"', '"bytes": 1, "ignored"', "its number of bytes is not that of the manifest"),
        ('"rejects": 1', '"rejects": 2', "counts 2 rejects, rejects.parquet 1"),
    ],
)
def test_numbers_in_the_description_are_checked(built: Path, right: str, wrong: str, what: str) -> None:
    path = built / "dataset.json"
    if right == '"bytes"':
        right = f'"bytes": {Manifest.load(built).size.sum()}'
        wrong = '"bytes": 1'
    assert path.read_text().count(right) == 1
    path.write_text(path.read_text().replace(right, wrong))
    assert problems(built) == [f"dataset.json: {what}"]


def test_without_a_manifest_there_is_nothing_to_compare_with(built: Path) -> None:
    flip(built / "manifest.parquet", 100)
    with pytest.raises(ShardError, match=r"manifest\.parquet: does not match"):
        verify(built)
