"""Lists of videos as they are published."""

from pathlib import Path

import pytest

from shards.files import ShardError
from shards.sources.source import list_source

CSV = """label,youtube_id,time_start,time_end,split
"riding, a bike",aaaaaaaaaaa,10,20,train
abseiling,-bbbbbbbbbb,0,10,train
abseiling,ccccccccccc,5,15,train
"""
NAMES = ("aaaaaaaaaaa_000010_000020.mp4", "-bbbbbbbbbb_000000_000010.mp4", "ccccccccccc_000005_000015.mp4")


@pytest.mark.parametrize("folder", ["{label}/", "train/{label}/", "train/", ""])
def test_the_csv_of_kinetics_lists_files_wherever_they_lie(folder: str, tmp_path: Path) -> None:
    labels = ("riding, a bike", "abseiling", "abseiling")
    files = [folder.format(label=label) + name for label, name in zip(labels, NAMES, strict=True)]
    for file in files[:2]:  # the third was never to be had
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"film")
    (tmp_path / "train.csv").write_text(CSV)
    listing = list_source(tmp_path / "train.csv")
    found = {
        path: (listing.classes[label], size)
        for path, label, size in zip(listing.paths, listing.labels, listing.sizes, strict=True)
    }
    assert found == {
        files[0]: ("riding, a bike", 4),
        files[1]: ("abseiling", 4),
        f"abseiling/{NAMES[2]}": ("abseiling", 0),
    }


def test_a_time_that_is_not_one_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(CSV.replace("-bbbbbbbbbb,0", "-bbbbbbbbbb,none"))
    with pytest.raises(ShardError, match="row 2: time_start"):
        list_source(tmp_path / "train.csv")


@pytest.mark.parametrize("between", [" ", "\t"])
def test_a_list_without_a_header(between: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"k400/a b, c.mp4{between}3\n\nd.webm{between}0\n")
    listing = list_source(tmp_path / "list.csv")
    assert listing.paths == ["d.webm", "k400/a b, c.mp4"]
    assert listing.labels == [0, 3] and listing.classes == ["0", "1", "2", "3"]


def test_a_line_of_another_form_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("a.mp4 3\nb.mp4\n")
    with pytest.raises(ShardError, match=r"line 2: b\.mp4 is not a path"):
        list_source(tmp_path / "list.csv")
