import json
import os
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow.parquet as pq
import pytest
from making_images import contents, encoded, make_tree, picture

from shards.build import build
from shards.files import ShardError
from shards.manifest import Dataset, Manifest
from shards.tables.rejects import count_rejects
from shards.tars.samples import samples_of


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "source", 23)


def spoil(source: Path) -> None:
    """Rejects of several kinds; with shards of 4, seed 0 and 23 images in all, shards become ragged."""
    (source / "ant" / "000.JPG").write_bytes(b"")
    (source / "ant" / "002.JPG").write_bytes((source / "ant" / "002.JPG").read_bytes()[:200])
    (source / "bee" / "gone.jpg").symlink_to("nowhere")
    (source / "bee" / "007.png").write_bytes(b"text")
    (source / "bee" / "notes.txt").write_text("ignored")


def test_every_column_of_the_manifest_is_true_of_the_tars(source: Path, tmp_path: Path) -> None:
    dataset, finished_before = build(source, tmp_path / "out", samples_per_shard=5, workers=1)
    manifest = Manifest.load(tmp_path / "out")
    assert not finished_before
    assert len(manifest) == dataset.samples == 23
    assert manifest.shard_names == [f"shard-{number:06d}.tar" for number in range(5)]
    assert manifest.counts.tolist() == [5, 5, 5, 5, 3]
    assert manifest.shard.tolist() == sorted(manifest.shard.tolist())
    assert manifest.classes == ["ant", "bee"]
    assert dataset.bytes == manifest.size.sum()

    listing = sorted(str(path.relative_to(source)) for path in source.rglob("*.*"))
    rows = [
        (name, key, parts) for name in manifest.shard_names for key, parts, _ in samples_of(tmp_path / "out" / name)
    ]
    for sample, (name, key, parts) in enumerate(rows):
        path, label, number = manifest.path(sample), manifest.label[sample], int(manifest.key(sample))
        assert (manifest.shard_names[manifest.shard[sample]], manifest.key(sample)) == (name, key)
        assert listing[number] == path
        suffix = "png" if path.endswith("png") else "jpg"
        assert set(parts) == {"cls", suffix, "json"}
        tar = (tmp_path / "out" / name).read_bytes()

        def body(ext: str, parts: dict = parts, tar: bytes = tar) -> bytes:
            offset, size, _ = parts[ext]
            return tar[offset : offset + size]

        image = (source / path).read_bytes()
        assert body(suffix) == image
        assert (manifest.offset[sample], manifest.size[sample]) == parts[suffix][:2]
        assert manifest.crc32c[sample] == google_crc32c.value(image)
        assert (manifest.classes[label], int(body("cls"))) == (path.split("/")[0], label)
        size = (manifest.height[sample], manifest.width[sample])
        assert size == (40 + int(path[4:7]), 56)
        facts = {"path": path, "height": size[0], "width": 56, "class": manifest.classes[label]}
        assert json.loads(body("json")) == facts
    assert sorted(manifest.key(sample) for sample in range(23)) == [f"{number:09d}" for number in range(23)]
    with pytest.raises(IndexError):
        manifest.key(23)
    for column, dtype in (
        ("shard", np.int32),
        ("offset", np.int64),
        ("label", np.int32),
        ("crc32c", np.uint32),
    ):
        assert getattr(manifest, column).dtype == dtype


def test_a_flat_source_has_no_labels(tmp_path: Path) -> None:
    build(make_tree(tmp_path / "flat", 3, classes=()), tmp_path / "out", workers=1)
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.label.tolist(), manifest.classes) == ([-1, -1, -1], [])
    assert pq.read_table(tmp_path / "out" / "manifest.parquet")["label"].null_count == 3
    assert all("cls" not in parts for _, parts, _ in samples_of(tmp_path / "out" / "shard-000000.tar"))


def test_rejects_are_listed_and_leave_shards_ragged(source: Path, tmp_path: Path) -> None:
    spoil(source)
    dataset, _ = build(source, tmp_path / "out", samples_per_shard=4, workers=1)
    assert (dataset.samples, dataset.rejects, dataset.ignored) == (20, 4, 1)
    assert sum(shard.samples for shard in dataset.shards) == 20
    assert {shard.samples for shard in dataset.shards} > {4}
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert [(row["path"], row["reason"], row["size"]) for row in rejects] == [
        ("ant/000.JPG", "empty", 0),
        ("ant/002.JPG", "corrupt", 200),
        ("bee/007.png", "not an image", 4),
        ("bee/gone.jpg", "unreadable", 0),
    ]
    assert rejects[3]["detail"] == "No such file or directory"
    assert count_rejects(tmp_path / "out") == {"empty": 1, "corrupt": 1, "not an image": 1, "unreadable": 1}


def test_a_shard_of_rejects_alone_has_no_tar_and_no_place_in_the_manifest(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "all", samples_per_shard=4, workers=1)
    every = Manifest.load(tmp_path / "all")
    for sample in np.flatnonzero(every.shard == 2):
        path = source / every.path(sample)
        path.write_bytes(bytes(path.stat().st_size))
    dataset, _ = build(source, tmp_path / "out", samples_per_shard=4, workers=1)
    assert [shard.name[6:12] for shard in dataset.shards] == [
        "000000",
        "000001",
        "000003",
        "000004",
        "000005",
    ]
    assert not list((tmp_path / "out").glob("shard-000002.*"))
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.counts.tolist() == [4, 4, 4, 4, 3]
    assert np.bincount(manifest.shard).tolist() == [4, 4, 4, 4, 3]
    kept = np.flatnonzero(every.shard != 2)
    assert manifest.crc32c.tolist() == every.crc32c[kept].tolist()


def test_workers_change_no_byte(source: Path, tmp_path: Path) -> None:
    spoil(source)
    for workers in (1, 2, 3):
        build(source, tmp_path / str(workers), samples_per_shard=3, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3")
    assert not (tmp_path / "1" / ".build").exists()


def test_the_seed_decides_the_order_and_the_place_of_the_source_does_not(source: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    source.rename(moved)
    source.symlink_to(moved)
    build(source, tmp_path / "0", workers=1)
    build(moved, tmp_path / "moved", workers=1)
    build(source, tmp_path / "7", workers=1, seed=7)
    assert contents(tmp_path / "0") == contents(tmp_path / "moved")
    first, other = Manifest.load(tmp_path / "0"), Manifest.load(tmp_path / "7")
    assert first.identity != other.identity
    assert first.crc32c.tolist() != other.crc32c.tolist()
    assert sorted(first.crc32c.tolist()) == sorted(other.crc32c.tolist())


def test_resize_and_max_pixels_reach_the_images(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", 8)
    (source / "ant" / "big.png").write_bytes(encoded(picture(1, 100, 100), "PNG"))
    dataset, _ = build(source, tmp_path / "out", resize=20, max_pixels=9_999, workers=1)
    manifest = Manifest.load(tmp_path / "out")
    assert (len(manifest), dataset.rejects) == (8, 1)
    assert set(np.minimum(manifest.height, manifest.width)) == {20}
    assert all("jpg" in parts for _, parts, _ in samples_of(tmp_path / "out" / "shard-000000.tar"))


def test_a_check_of_headers_makes_the_same_shards_and_lets_damaged_pixels_pass(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "full", samples_per_shard=9, workers=1)
    quick, _ = build(source, tmp_path / "quick", samples_per_shard=9, workers=1, check="header")
    assert quick.options is not None
    assert quick.options.check == "header"
    text = (tmp_path / "full" / "dataset.json").read_text()
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "dataset.json").write_text(text.replace(',\n  "check": "decode"', ""))
    assert "check" not in (tmp_path / "before" / "dataset.json").read_text()
    assert Dataset.load(tmp_path / "before") == Dataset.load(tmp_path / "full")
    full, quick_files = contents(tmp_path / "full"), contents(tmp_path / "quick")
    assert {name for name in full if full[name] != quick_files[name]} == {"dataset.json"}
    pixels_cut_off = (source / "ant" / "002.JPG").read_bytes()[:-100]
    spoil(source)
    (source / "ant" / "002.JPG").write_bytes(pixels_cut_off)
    assert build(source, tmp_path / "decoded", workers=1)[0].rejects == 4
    dataset, _ = build(source, tmp_path / "headers", workers=1, check="header")
    assert dataset.rejects == 3
    assert "ant/002.JPG" in [path for _, path in Manifest.load(tmp_path / "headers").names(0, dataset.samples)]


def test_a_finished_build_is_left_alone(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out", workers=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    dataset, finished_before = build(source, tmp_path / "out", workers=2)
    assert finished_before
    assert dataset == Dataset.load(tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_anything_else_in_out_is_refused(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out", workers=1)
    before = contents(tmp_path / "out")
    with pytest.raises(ShardError, match=r"out: contains a data set of other files or options; .* delete"):
        build(source, tmp_path / "out", workers=1, seed=1)
    assert contents(tmp_path / "out") == before

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(ShardError, match="other: contains other files"):
        build(source, tmp_path / "other", workers=1)
    assert contents(tmp_path / "other") == {"thesis.tex": b"mine"}

    (tmp_path / "begun" / ".build").mkdir(parents=True)
    (tmp_path / "begun" / ".build" / "build.json").write_text('{"fingerprint": "of another input"}')
    with pytest.raises(ShardError, match="begun: contains an unfinished build of other files or options"):
        build(source, tmp_path / "begun", workers=1)


def test_source_and_out_must_lie_apart(source: Path, tmp_path: Path) -> None:
    for out in (source / "out", source, tmp_path):
        with pytest.raises(ShardError, match="or is inside it; choose a separate folder"):
            build(source, out, workers=1)


def test_a_source_without_a_usable_image_says_so(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", 2)
    for path in source.rglob("*.JPG"):
        path.write_bytes(b"text")
    with pytest.raises(ShardError, match=r"none of its 2 files can be used \(the first, ant/000.JPG: not an im"):
        build(source, tmp_path / "out", workers=1)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_names_outside_ascii_survive_in_the_manifest_and_stay_out_of_the_tar(tmp_path: Path) -> None:
    folder = tmp_path / "source" / "Käfer rot"
    folder.mkdir(parents=True)
    (folder / os.fsdecode(b"a b\xff.jpg")).write_bytes(encoded(picture(0), "JPEG"))
    build(tmp_path / "source", tmp_path / "out", workers=1)
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.path(0), manifest.classes) == ("Käfer rot/a b\\xff.jpg", ["Käfer rot"])
    assert [key for key, _, _ in samples_of(tmp_path / "out" / "shard-000000.tar")] == ["000000000"]


def test_classes_that_would_have_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("\\xff", os.fsdecode(b"\xff")):
        (tmp_path / "source" / folder).mkdir(parents=True)
        (tmp_path / "source" / folder / "1.jpg").write_bytes(encoded(picture(0), "JPEG"))
    with pytest.raises(
        ShardError, match=r"source: 2 classes would be called \\xff, one of which has bytes that are no"
    ):
        build(tmp_path / "source", tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_nonsense_numbers_are_refused(source: Path, tmp_path: Path) -> None:
    for name in ("samples_per_shard", "resize", "workers", "max_pixels"):
        with pytest.raises(ShardError, match=rf"{name}=0\b.*must be from 1 to 2"):
            build(source, tmp_path / "out", **{name: 0})
    with pytest.raises(
        ShardError, match=rf"max_pixels={2**63}\b.*must be from 1 to 2"
    ):  # dataset.json could not say it
        build(source, tmp_path / "out", max_pixels=2**63)
    assert not (tmp_path / "out").exists()


def test_manifest_refuses_what_is_not_a_finished_data_set(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ShardError, match="out: no such folder"):
        Manifest.load(out)
    build(source, out, workers=1)
    text = (out / "dataset.json").read_text()

    (out / "dataset.json").write_text(text.replace('"version": 2', '"version": 3'))
    with pytest.raises(ShardError, match="has version 3, which is not 1 to 2; update"):
        Manifest.load(out)
    for other in ("{}", "[]", "not JSON", '{"format": "another", "version": 1}'):
        (out / "dataset.json").write_text(other)
        with pytest.raises(ShardError, match=r"dataset\.json: is not a maskfeat-shards description"):
            Manifest.load(out)
    (out / "dataset.json").unlink()
    with pytest.raises(ShardError, match=r"has no dataset\.json, so it is not a finished data set; correct"):
        Manifest.load(out)

    (out / "dataset.json").write_text(text)
    assert Manifest.load(out).identity == Dataset.load(out).manifest_sha256
    manifest = (out / "manifest.parquet").read_bytes()
    (out / "manifest.parquet").write_bytes(manifest[:-1] + b"X")
    with pytest.raises(ShardError, match=r"manifest\.parquet: does not match dataset\.json"):
        Manifest.load(out)
    (out / "manifest.parquet").unlink()
    with pytest.raises(ShardError, match=r"manifest\.parquet: is missing"):
        Manifest.load(out)


def test_names_cross_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.tables.columns._ROWS_PER_GROUP", 8)
    build(make_tree(tmp_path / "source", 23), tmp_path / "out", samples_per_shard=5, workers=1)
    manifest = Manifest.load(tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "manifest.parquet")
    assert pq.ParquetFile(tmp_path / "out" / "manifest.parquet").num_row_groups == 3
    expected = list(zip(table["key"].to_pylist(), table["path"].to_pylist(), strict=True))
    assert manifest.names(0, 23) == expected
    assert manifest.names(7, 21) == expected[7:21]
    assert manifest.names(23, 23) == []
    assert [manifest.path(sample) for sample in range(23)] == [path for _, path in expected]
