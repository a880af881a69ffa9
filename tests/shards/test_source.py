import os
from pathlib import Path

import pytest

from shards.files import ShardError
from shards.source import list_source
from shards.text import printable


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())


def test_an_image_folder_has_sorted_paths_sizes_and_labels(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.png", "b/deep/er/1.JPEG", "a/z.jpg", "a/notes.txt", "B/x.tiff", "a.b/x.jpg", "readme")
    listing = list_source(tmp_path)
    assert listing.paths == ["B/x.tiff", "a.b/x.jpg", "a/z.jpg", "b/2.png", "b/deep/er/1.JPEG"]
    assert listing.sizes == [8, 9, 7, 7, 16]
    assert listing.classes == ["B", "a", "a.b", "b"]
    assert listing.labels == [0, 2, 1, 3, 3]
    assert listing.ignored == 2


def test_a_flat_folder_has_no_labels_and_ignores_folders_without_images(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a.webp", "thumbs/index.db")
    listing = list_source(tmp_path)
    assert (listing.paths, listing.labels, listing.classes) == (["a.webp", "b.jpg"], [], [])
    assert listing.ignored == 1


def test_hidden_files_and_folders_are_ignored(tmp_path: Path) -> None:
    touch(tmp_path, "ant/1.jpg", "ant/._1.jpg", ".trash/2.jpg", "bee/.cache/3.jpg", "bee/4.jpg")
    listing = list_source(tmp_path)
    assert (listing.paths, listing.classes, listing.ignored) == (["ant/1.jpg", "bee/4.jpg"], ["ant", "bee"], 3)


def test_a_file_of_another_kind_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "images.zip")
    with pytest.raises(ShardError, match=r"images\.zip: is neither a folder nor a \.tar, \.csv or \.parquet file"):
        list_source(tmp_path / "images.zip")


def test_both_layouts_at_once_are_an_error_that_names_an_example_of_each(tmp_path: Path) -> None:
    touch(tmp_path, "loose.jpg", "cats/1.jpg")
    with pytest.raises(ShardError, match=r"loose\.jpg.*cats/"):
        list_source(tmp_path)


def test_a_missing_an_empty_and_an_imageless_source_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="nowhere: no such folder or file"):
        list_source(tmp_path / "nowhere")
    with pytest.raises(ShardError, match=r"no images .* among 0 files"):
        list_source(tmp_path)
    touch(tmp_path, "a/notes.txt")
    with pytest.raises(ShardError, match=r"no images .* among 1 files"):
        list_source(tmp_path)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    touch(elsewhere, "1.jpg")
    source.mkdir()
    (source / "cats").symlink_to(elsewhere)
    (source / "dogs").symlink_to(elsewhere)  # the same folder twice is not a circle
    (elsewhere / "up").symlink_to(source)
    (elsewhere / "gone.jpg").symlink_to("nothing")
    (elsewhere / "self.jpg").symlink_to("self.jpg")
    os.mkfifo(elsewhere / "pipe.jpg")
    listing = list_source(source)
    direct = ["cats/1.jpg", "cats/gone.jpg", "cats/self.jpg", "dogs/1.jpg", "dogs/gone.jpg", "dogs/self.jpg"]
    assert listing.paths == direct
    assert listing.sizes == [5, 0, 0, 5, 0, 0]


def test_names_that_are_not_utf8_sort_by_bytes_and_print_as_escapes(tmp_path: Path) -> None:
    for name in (b"\xff.jpg", "é.jpg".encode(), b"z.jpg"):
        (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    listing = list_source(tmp_path)
    assert [printable(path) for path in listing.paths] == ["z.jpg", "é.jpg", "\\xff.jpg"]
