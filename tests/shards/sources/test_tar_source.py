import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from making_images import contents, damage_header, encoded, make_tar, make_tar_of_tars, make_tree, picture

from shards.build import build
from shards.files import ShardError
from shards.sources.source import list_source
from shards.storage import read


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = make_tree(tmp_path / "tree", 11, ("n02", "n01", "n10"))
    (root / "n01" / "deep").mkdir()
    (root / "n01" / "deep" / "bad.jpg").write_bytes(b"text")
    (root / "n01" / "notes.txt").write_text("ignored")
    (root / "n02" / "._000.JPG").write_bytes(b"what macOS adds")
    return root


def test_a_tar_of_tars_gives_the_bytes_that_its_unpacked_folder_gives(tree: Path, tmp_path: Path) -> None:
    tar = make_tar_of_tars(tmp_path / "images.tar", tree)
    build(tree, tmp_path / "0", samples_per_shard=4, workers=1)
    for workers in (1, 2):
        build(tar, tmp_path / str(workers), samples_per_shard=4, workers=workers)
        assert contents(tmp_path / str(workers)) == contents(tmp_path / "0")


def test_an_item_is_a_range_of_the_outer_file(tree: Path, tmp_path: Path) -> None:
    listing = list_source(make_tar_of_tars(tmp_path / "images.tar", tree))
    assert (listing.classes, listing.ignored) == (["n01", "n02", "n10"], 2)
    for index in range(len(listing.paths)):
        item = listing.item(index)
        assert item.file == str(tmp_path / "images.tar")
        assert read(item.file, item.offset, item.size) == (tree / item.path).read_bytes()
        assert item.class_name == item.path.split("/")[0]


def test_a_tar_that_shrinks_under_the_build_costs_the_images_that_are_gone(tree: Path, tmp_path: Path) -> None:
    tar = make_tar_of_tars(tmp_path / "images.tar", tree)
    last = max(list_source(tar).item(index).offset or 0 for index in range(12))
    with pytest.raises(OSError, match="10 bytes were received instead of 100"):
        tar.write_bytes(tar.read_bytes()[: last + 10])
        read(str(tar), last, 100)


def test_only_tars_of_class_tars_are_listed(tmp_path: Path) -> None:
    source = tmp_path / "images.tar"
    make_tar(source, {"000.jpg": b"", "000.cls": b"1"})
    with pytest.raises(ShardError, match=r"images\.tar: contains no <class>\.tar; .* `maskfeat-shards index`"):
        list_source(source)
    make_tar(source, {"cat.tar": make_tar(tmp_path / "inner", {"notes.txt": b""}).read_bytes(), "readme": b""})
    with pytest.raises(ShardError, match=r"images\.tar: no images .* among 2 files"):
        list_source(source)
    for damaged in (b"x" * 2048, make_tar(source, {"cat.tar": b"x" * 1024}).read_bytes()):
        source.write_bytes(damaged)
        with pytest.raises(ShardError, match=r"images\.tar: not a readable tar of tars"):
            list_source(source)


def test_a_truncated_tar_is_an_error(tree: Path, tmp_path: Path) -> None:
    tar = make_tar_of_tars(tmp_path / "images.tar", tree)
    tar.write_bytes(tar.read_bytes()[:-30_000])
    with pytest.raises(
        ShardError, match=r"images\.tar: not a readable tar of tars \(unexpected end of data: the header at"
    ):
        list_source(tar)


@pytest.mark.parametrize("how", ["flip", "cut", "cut within"])
@pytest.mark.parametrize("number", [2, 3])  # the last class, and the end mark
def test_no_class_is_lost_behind_a_damaged_header(how: str, number: int, tree: Path, tmp_path: Path) -> None:
    tar = make_tar_of_tars(tmp_path / "images.tar", tree)
    damage_header(tar, number, how)
    with pytest.raises(ShardError, match=r"images\.tar: not a readable tar of tars \(no header at byte"):
        list_source(tar)


def test_no_image_is_lost_behind_a_damaged_header_of_a_class(tmp_path: Path) -> None:
    inner = make_tar(tmp_path / "cat.tar", {f"{n}.jpg": encoded(picture(n), "JPEG") for n in range(5)})
    whole = inner.read_bytes()
    damage_header(inner, 3, "flip")
    tar = make_tar(tmp_path / "images.tar", {"cat.tar": inner.read_bytes(), "dog.tar": whole})
    with pytest.raises(ShardError, match=r"images\.tar: not a readable tar of tars \(no header at byte"):
        list_source(tar)


def test_two_tars_of_one_class_are_refused(tmp_path: Path) -> None:
    inner = make_tar(tmp_path / "inner", {"1.jpg": b"", "2.jpg": b""}).read_bytes()
    tar = make_tar(tmp_path / "images.tar", {"train/cat.tar": inner, "val/cat.tar": inner})
    with pytest.raises(ShardError, match="contains two tars for the class cat"):
        list_source(tar)


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("1.jpg", tarfile.SYMTYPE, "is not a regular file"),
        ("1.jpg", tarfile.LNKTYPE, "is a hard link to /etc/passwd, which is not in the tar before it"),
        ("1.jpg", tarfile.CHRTYPE, "is not a regular file"),
        ("/1.jpg", tarfile.REGTYPE, "has an absolute or .. path"),
        ("../1.jpg", tarfile.REGTYPE, "has an absolute or .. path"),
    ],
)
def test_links_devices_and_odd_paths_are_refused(name: str, kind: bytes, why: str, tmp_path: Path) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "inner", "w") as tar:
        tar.addfile(member)
    make_tar(tmp_path / "images.tar", {"cat.tar": (tmp_path / "inner").read_bytes()})
    with pytest.raises(ShardError, match=rf"images\.tar/cat\.tar: member {name} {why}; get the tar from"):
        list_source(tmp_path / "images.tar")
    (tmp_path / "inner").rename(tmp_path / "images.tar")
    with pytest.raises(ShardError, match=rf"images\.tar: member {name} {why}"):
        list_source(tmp_path / "images.tar")


def test_rejects_name_the_path_in_the_unpacked_folder(tree: Path, tmp_path: Path) -> None:
    build(make_tar_of_tars(tmp_path / "images.tar", tree), tmp_path / "out", workers=1)
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert [(row["path"], row["reason"]) for row in rejects] == [("n01/deep/bad.jpg", "not an image")]


def test_classes_without_an_image_and_what_is_ignored_are_named(tree: Path, tmp_path: Path) -> None:
    for name in ("empty", "raw"):
        (tree / name).mkdir()
    (tree / "raw" / "1.NEF").write_bytes(b"a")
    tar = make_tar_of_tars(tmp_path / "images.tar", tree)
    listing = list_source(tar)
    assert listing.classes == ["n01", "n02", "n10"]
    assert listing.notes == (
        f"{tar}: ignored files: 1 .nef, 1 .txt, 1 hidden; .nef cannot be read here: convert to JPEG first",
        f"{tar}: no class for tars without an image or video: empty, raw",
    )


def test_tars_of_the_parts_of_a_data_set_are_no_classes(tmp_path: Path) -> None:
    tar = make_tar_of_tars(tmp_path / "images.tar", make_tree(tmp_path / "tree", 4, ("train", "val")))
    with pytest.raises(
        ShardError, match=r"contains the splits of a data set \(train, val\), .*; unpack it, and build each"
    ):
        build(tar, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()
