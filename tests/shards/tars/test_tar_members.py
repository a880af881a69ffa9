"""The members of tars as people have them: in any order, from macOS, with links and second suffixes."""

import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from indexing import JPEGS, indexed, rejects, samples
from making_images import make_tar, make_tar_of_tars, make_tree

from shards.manifest import Manifest
from shards.media.media import Rejected
from shards.sources.source import list_source
from shards.tars.check import check_sample
from shards.tars.samples import Sample

EXPECTED = {str(number): (image, str(number % 3)) for number, image in enumerate(JPEGS)}


def by_suffix(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: name.partition(".")[::-1])


def shuffled(names: list[str]) -> list[str]:
    return random.Random(7).sample(names, len(names))


@pytest.mark.parametrize("order", [list, reversed, by_suffix, shuffled])
def test_members_of_a_sample_are_joined_in_any_order(order: Callable[[list[str]], list[str]], tmp_path: Path) -> None:
    members = samples()
    tar = make_tar(tmp_path / "a.tar", {name: members[name] for name in order(list(members))})
    assert indexed(tmp_path, tar) == EXPECTED
    assert rejects(tmp_path) == {}


def test_dali_reads_a_tar_whose_members_lie_apart_through_its_index(tmp_path: Path) -> None:
    fn = pytest.importorskip("nvidia.dali.fn")
    from nvidia.dali import pipeline_def

    members = samples()
    tar = make_tar(tmp_path / "a.tar", {name: members[name] for name in shuffled(list(members))})
    with tarfile.open(tar, "a") as file:
        for name, target in (("6.jpg", "2.jpg"), ("6.cls", "2.cls")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.LNKTYPE, target
            file.addfile(link)
    by_key = EXPECTED | {"6": EXPECTED["2"]}
    assert indexed(tmp_path, tar) == by_key
    (idx,) = (tmp_path / "out").glob("*.idx")

    @pipeline_def(batch_size=7, num_threads=1, device_id=None)
    def pipeline():  # type: ignore[no-untyped-def]
        return tuple(fn.readers.webdataset(paths=[str(tar)], index_paths=[str(idx)], ext=["jpg", "cls"]))

    images, labels = pipeline().run()
    read = [
        (bytes(np.asarray(image)), bytes(np.asarray(label)).decode())
        for image, label in zip(images, labels, strict=True)
    ]
    keys = [key for key, _ in Manifest.load(tmp_path / "out").names(0, 7)]
    assert read == [by_key[key] for key in keys]


def test_what_macos_and_others_add_is_passed_over(tmp_path: Path) -> None:
    members: dict[str, bytes] = {".DS_Store": b"x", "__MACOSX/._0.jpg": b"x"}
    for name, data in samples().items():
        members |= {f"./._{name}": b"\0\5\26\7", f"./{name}": data, f"./.hidden/{name}": b"x"}
    expected = {f"./{key}": value for key, value in EXPECTED.items()}
    assert indexed(tmp_path, make_tar(tmp_path / "a.tar", members)) == expected
    assert rejects(tmp_path) == {}


def test_a_tar_that_was_made_of_a_hidden_folder_is_read(tmp_path: Path) -> None:
    members = {f"home/.cache/{name}": data for name, data in samples().items()} | {"home/.cache/._0.jpg": b"x"}
    expected = {f"home/.cache/{key}": value for key, value in EXPECTED.items()}
    assert indexed(tmp_path, make_tar(tmp_path / "a.tar", members)) == expected


def test_an_image_of_too_many_bytes_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(Rejected) as caught:
        check_sample(tmp_path / "none", Sample("a", {"jpg": (512, 2**29 + 1, "a.jpg")}, None), 100)
    assert (caught.value.reason, caught.value.detail) == ("too many bytes", "536870913 bytes, more than 536870912")


def test_hidden_tars_in_a_tar_of_class_tars_are_passed_over(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 6, ("ant", "bee"))
    for folder in list(tree.iterdir()):
        for file in list(folder.iterdir()):
            (folder / f"._{file.name}").write_bytes(b"x")
    plain = make_tar_of_tars(tmp_path / "plain.tar", tree)
    with tarfile.open(plain) as tar:
        classes = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    twins = {f"._{name}": b"\0\5\26\7" for name in classes} | {"__MACOSX/._ant.tar": b"x"}
    listing = list_source(make_tar(tmp_path / "mac.tar", twins | classes))
    assert (listing.classes, len(listing.paths), listing.ignored) == (["ant", "bee"], 6, 9)


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["a.input.jpg", "a.output.cls"], "a.input.jpg"),
        (["a.seg.png", "a.jpg", "a.cls"], "a.jpg"),
        (["a.JPG", "a.CLS"], "a.JPG"),
        (["a.Input.JPEG", "a.b.c.ClS"], "a.Input.JPEG"),
        (["a.jfif", "a.cls", "a.cls.txt"], "a.jfif"),
        (["a.cls", "a.image.png.jpg"], "a.image.png.jpg"),
    ],
)
def test_the_one_member_with_the_suffix_of_an_image_is_taken(names: list[str], kept: str, tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "a.tar", {name: b"5" if "cls" in name.lower() else JPEGS[0] for name in names})
    assert indexed(tmp_path, tar) == {"a": (JPEGS[0], "5")}
    assert Manifest.load(tmp_path / "out").path(0) == kept


def test_what_cannot_be_told_is_rejected_by_its_cause(tmp_path: Path) -> None:
    members = {f"good.{extension}": JPEGS[0] for extension in ("jpg",)}
    members |= {"img.v1.jpg": JPEGS[1], "img.v2.jpg": JPEGS[2], "img.v3.jpg": JPEGS[3], "img.v4.jpg": JPEGS[4]}
    members |= {"two.jpg": JPEGS[1], "two.jpeg": JPEGS[1], "none.txt": b"x", "web.webp": b"x", "tif.scan.TIFF": b"x"}
    members |= {"cls.jpg": JPEGS[1], "cls.a.cls": b"1", "cls.b.cls": b"2"}
    indexed(tmp_path, make_tar(tmp_path / "a.tar", members))
    suffixes = "members end in .avi, .jfif, .jpe, .jpeg, .jpg, .m4v, .mkv, .mov, .mp4, .png, .webm"
    stay = "which `index` cannot convert; unpack the tars and use `maskfeat-shards build`"
    assert rejects(tmp_path) == {
        "img": (
            "not one image",
            f"4 {suffixes}: .v1.jpg, .v2.jpg, .v3.jpg, ...; names contain dots, and the key ends at the first dot",
        ),
        "two": ("not one image", f"2 {suffixes}: .jpg, .jpeg"),
        "none": ("not one image", f"0 {suffixes}"),
        "web": ("needs rewriting", f"is .webp, {stay}"),
        "tif": ("needs rewriting", f"is .scan.TIFF, {stay}"),
        "cls": ("bad label", ".a.cls, .b.cls do not agree"),
    }


def test_hard_links_are_what_they_stand_for(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:

        def add(name: str, data: bytes | None = None, link: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.size = len(data or b"")
            if data is None:
                member.type, member.linkname = tarfile.LNKTYPE, link
            tar.addfile(member, io.BytesIO(data or b""))

        add("chain.jpg", link="late.jpg")  # what it stands for comes later
        add("0.jpg", JPEGS[0])
        add("0.cls", b"ant")
        add("1.jpg", link="0.jpg")
        add("1.cls", link="0.cls")
        add("2.png.jpg", link="1.jpg")
        add("late.jpg", JPEGS[3])
        add("gone.jpg", link="nowhere.jpg")
        add("self.jpg", link="self.jpg")
        add("outside.jpg", link="/etc/passwd")
        add("bad.jpg", link="0.jpg")
        add("bad.cls", b"-1")
        add("twice.jpg", JPEGS[4])
        add("twice.jpg", JPEGS[5])
        add("last.jpg", link="twice.jpg")
    assert indexed(tmp_path, tmp_path / "a.tar") == {
        "0": (JPEGS[0], "ant"),
        "1": (JPEGS[0], "ant"),
        "2": (JPEGS[0], None),
        "late": (JPEGS[3], None),
        "last": (JPEGS[5], None),
    }
    missing = "is a hard link to {}, which is not in the tar before it"
    assert rejects(tmp_path) == {
        "chain": ("unsafe member", f"chain.jpg {missing.format('late.jpg')}"),
        "gone": ("unsafe member", f"gone.jpg {missing.format('nowhere.jpg')}"),
        "self": ("unsafe member", f"self.jpg {missing.format('self.jpg')}"),
        "outside": ("unsafe member", f"outside.jpg {missing.format('/etc/passwd')}"),
        "bad": ("bad label", ".cls: -1 is not a whole number from 0 to 99999"),
        "twice": ("unsafe member", "twice.jpg is there twice"),
    }


def test_hard_links_in_a_class_tar_are_what_they_stand_for(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "inner", "w") as tar:
        for name in ("1.jpg", "2.jpg", "3.jpg"):
            member = tarfile.TarInfo(name)
            if name == "1.jpg":
                member.size = len(JPEGS[0])
            else:
                member.type, member.linkname = tarfile.LNKTYPE, f"{int(name[0]) - 1}.jpg"
            tar.addfile(member, io.BytesIO(JPEGS[0]))
    make_tar(tmp_path / "all.tar", {"ant.tar": (tmp_path / "inner").read_bytes()})
    listing = list_source(tmp_path / "all.tar")
    assert listing.paths == ["ant/1.jpg", "ant/2.jpg", "ant/3.jpg"]
    assert len(set(listing.offsets)) == 1 and listing.sizes == [len(JPEGS[0])] * 3
    assert (tmp_path / "all.tar").read_bytes()[listing.offsets[0] :].startswith(JPEGS[0])
