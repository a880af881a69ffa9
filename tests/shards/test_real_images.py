from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from making_images import contents

from shards.build import build
from shards.manifest import Manifest
from shards.verify import verify


@pytest.fixture(scope="module")
def built(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clothing") / "out"
    build(test_data / "clothing" / "train", out, samples_per_shard=500, workers=2)
    return out


def test_one_worker_writes_the_same_bytes_as_two(test_data: Path, built: Path, tmp_path: Path) -> None:
    build(test_data / "clothing" / "train", tmp_path / "out", samples_per_shard=500, workers=1)
    assert contents(tmp_path / "out") == contents(built)


def test_the_shards_are_clean_and_webdataset_reads_every_sample(built: Path) -> None:
    import webdataset

    assert verify(built) == []
    manifest = Manifest.load(built)
    assert len(manifest) == 3068
    assert manifest.counts.tolist() == [500] * 6 + [68]
    urls = [str(built / name) for name in manifest.shard_names]
    read = [(sample["__key__"], int(sample["cls"])) for sample in webdataset.WebDataset(urls, shardshuffle=False)]
    assert read == list(zip([key for key, _ in manifest.names(0, 3068)], manifest.label.tolist(), strict=True))


def test_a_flipped_byte_is_found_and_named(built: Path) -> None:
    manifest = Manifest.load(built)
    sample = 1234
    path = built / manifest.shard_names[manifest.shard[sample]]
    good = path.read_bytes()
    bad = bytearray(good)
    bad[manifest.offset[sample] + 100] ^= 1
    path.write_bytes(bad)
    try:
        problems = [str(problem) for problem in verify(built)]
    finally:
        path.write_bytes(good)
    assert problems == [
        f"{path.name}: has other bytes: 1 of its 500 samples are damaged",
        f"{path.name}: sample {manifest.key(sample)} ({manifest.path(sample)}) is damaged",
    ]


def test_imagenet_files_as_published_are_all_kept(test_data: Path, tmp_path: Path) -> None:
    source = test_data / "imagenet-samples"
    dataset, _ = build(source, tmp_path / "out", resize=256, workers=2)
    manifest = Manifest.load(tmp_path / "out")
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert (rejects, dataset.samples) == ([], len(list(source.glob("*.JPEG"))))
    assert np.minimum(manifest.height, manifest.width).max() == 256
    assert verify(tmp_path / "out") == []
