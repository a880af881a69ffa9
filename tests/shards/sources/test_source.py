import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from shards.files import ShardError
from shards.media.registry import suffixes
from shards.sources.folder import refuse_parts
from shards.sources.source import list_source
from shards.text import printable


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())


def test_the_suffixes_of_samples_are_those_that_the_documentation_lists() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "reference" / "sources.md").read_text()
    listed = re.search(r"Names of images end\s+in\s+(.*?), in\s+upper or\s+lower case", text, re.DOTALL)
    assert listed and set(re.findall(r"`\.(\w+)`", listed[1])) == suffixes()


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
    assert (listing.paths, listing.classes, listing.ignored) == (["ant/1.jpg", "bee/4.jpg"], ["ant", "bee"], 1)


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


def notes(root: Path) -> list[str]:
    """The notes, without the name of the source in front."""
    found = list_source(root).notes
    assert all(line.startswith(f"{root}: ") and "\n" not in line for line in found)
    return [line.removeprefix(f"{root}: ") for line in found]


@pytest.mark.parametrize(
    "name",
    [
        *("@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "__MACOSX", "#recycle", "@Recycle"),
        *("#snapshot", "__pycache__", ".Trash-1000", ".ipynb_checkpoints", ".git"),
    ],
)
def test_folders_of_systems_are_no_classes_wherever_they_are(name: str, tmp_path: Path) -> None:
    touch(tmp_path, f"{name}/cat/1.jpg", f"{name}/2.jpg", f"cat/{name}/3.jpg", "cat/4.jpg", "dog/5.jpg")
    listing = list_source(tmp_path)
    assert (listing.paths, listing.classes, listing.ignored) == (["cat/4.jpg", "dog/5.jpg"], ["cat", "dog"], 0)
    assert notes(tmp_path) == [f"passed over folders that are not classes: 2 {name}"]


def test_a_class_may_be_called_almost_like_a_folder_of_a_system(tmp_path: Path) -> None:
    names = ["#1", "@home", "found", "recycle", "snapshot", "tmp"]
    touch(tmp_path, *(f"{name}/1.jpg" for name in names))
    assert (list_source(tmp_path).classes, notes(tmp_path)) == (names, [])


def closed(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """Has `folders` refuse to be listed: their modes would not hold root back."""
    listed = os.scandir

    def scandir(folder: str) -> object:
        if Path(folder) in folders:
            raise PermissionError(13, "Permission denied", folder)
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)


def test_closed_folders_of_systems_do_not_matter_but_closed_classes_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "cat/1.jpg", "dog/deep/2.jpg", "lost+found/3.jpg", ".Trash-0/4.jpg")
    closed(monkeypatch, tmp_path / "lost+found", tmp_path / ".Trash-0")
    assert list_source(tmp_path).paths == ["cat/1.jpg", "dog/deep/2.jpg"]
    closed(monkeypatch, tmp_path / "dog" / "deep")
    with pytest.raises(ShardError, match=r"/dog/deep: Permission denied; make it readable \(chmod -R u\+rX\), or move"):
        list_source(tmp_path)


def test_what_is_ignored_is_counted_by_kind_and_the_remedy_told(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.jpg", "cat/2.CR2", "cat/3.cr2", "dog/4.cr2", "dog/5.jxl", "dog/Thumbs.db", "dog/README")
    touch(tmp_path, "cat/._1.jpg", "cat/.DS_Store")
    (tmp_path / "cow").mkdir()
    (tmp_path / "eel").symlink_to("/nowhere")
    assert notes(tmp_path) == [
        "ignored files: 3 .cr2, 2 hidden, 1 .db, 1 .jxl, 1 broken links, 1 others; .cr2, .jxl cannot be read "
        "here: convert to JPEG first",
        "one class only, cat; if it contains the class folders, build it instead",
        "no class for folders without an image or video: cow (empty), dog (all its files are ignored: 4), "
        "eel (a broken link)",
    ]
    (tmp_path / "cat" / "1.jpg").unlink()
    (tmp_path / ".x").mkdir()
    with pytest.raises(
        ShardError,
        match=r"among 9 files: passed over .*: 1 \.x; ignored files: 3 \.cr2, .*; \.cr2, \.jxl cannot be read",
    ):
        list_source(tmp_path)


def test_videos_that_cannot_be_read_are_pointed_out(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.mp4", "cat/2.MPG", "dog/3.mp4", "dog/4.wmv", "dog/5.mpg", "dog/6.psd")
    assert notes(tmp_path) == [
        "ignored files: 2 .mpg, 1 .psd, 1 .wmv; .psd cannot be read here: convert to JPEG first; "
        ".mpg, .wmv cannot be read here: convert to MP4 first"
    ]


def test_images_that_are_in_no_folder_have_no_class_which_is_said(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.jpg")
    assert notes(tmp_path) == [
        "no classes: its files lie at the top; for labels, put them into a folder for each class"
    ]


def test_a_single_class_is_worth_a_note(tmp_path: Path) -> None:
    touch(tmp_path, "Data/cat/1.jpg", "Data/dog/1.jpg", "Annotations/1.xml")
    assert notes(tmp_path) == [
        "ignored files: 1 .xml",
        "one class only, Data; if it contains the class folders, build it instead",
        "no class for folders without an image or video: Annotations (all its files are ignored: 1)",
    ]


@pytest.mark.parametrize(
    ("paths", "part"),
    [
        (["train/cat/1.jpg", "val/cat/1.jpg"], "train"),
        (["test/1.jpg", "train/cat/1.jpg", "valid/cat/1.jpg", "labels/a.txt"], "train"),
        (["Train/1.jpg", "Validation/1.jpg"], "Train"),
        (["train2017/1.jpg", "val2017/1.jpg"], "train2017"),
        (["train_images/1.jpg", "test_images/1.jpg"], "train_images"),
        (["training set/cat/1.jpg", "test set/1.jpg"], "training set"),
        (["train/cat/1.jpg"], "train"),
        (["val/cat/1.jpg"], "val"),
    ],
)
def test_the_parts_of_a_data_set_are_not_its_classes(paths: list[str], part: str, tmp_path: Path) -> None:
    touch(tmp_path, *paths)
    with pytest.raises(ShardError) as error:
        refuse_parts(list_source(tmp_path))
    command = str(error.value).partition("build each separately: ")[2]
    assert shlex.split(command) == ["maskfeat-shards", "build", f"{tmp_path}/{part}", "..."]


@pytest.mark.parametrize(
    "paths",
    [
        ["train/1.jpg"],
        ["car/1.jpg", "plane/1.jpg", "train/1.jpg"],
        ["test/a/1.jpg", "train/a/1.jpg", "tram/a/1.jpg"],
        ["test1/1.jpg", "test2/1.jpg"],
        ["valley/a/1.jpg", "trainer/a/1.jpg"],
        ["1.jpg"],
    ],
)
def test_classes_may_be_called_like_parts(paths: list[str], tmp_path: Path) -> None:
    touch(tmp_path, *paths)
    refuse_parts(list_source(tmp_path))


def test_folders_may_be_as_deep_as_a_path_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depth = 1500
    try:
        for level in range(depth):
            monkeypatch.chdir("a" if level else tmp_path)
            Path("a").mkdir()
        Path("a", "1.jpg").write_bytes(b"x")
        monkeypatch.chdir(tmp_path)
        assert list_source(tmp_path).paths == ["a/" * depth + "1.jpg"]
    finally:
        subprocess.run(["rm", "-r", tmp_path / "a"], check=True)  # too deep for pytest
