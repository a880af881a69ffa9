"""Tars as people have them: in any order, from macOS, with links, second suffixes, labels of every kind."""

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from making_images import contents, encoded, make_tar, make_tar_of_tars, make_tree, picture

from shards import cli
from shards.assembly import Record
from shards.build import build
from shards.files import ShardError
from shards.index import index_tars
from shards.manifest import Manifest
from shards.media.media import Rejected
from shards.source import list_source
from shards.tarfiles import Sample
from shards.tarsample import check_sample
from shards.verify import verify


def jpeg(seed: int) -> bytes:
    return encoded(picture(seed), "JPEG")


JPEGS = [jpeg(seed) for seed in range(6)]


def indexed(root: Path, *tars: Path) -> dict[str, tuple[bytes, str | None]]:
    """Key to image and class, by the manifest of a data set of these tars that `verify` finds whole."""
    out = root / "out"
    index_tars([str(tar) for tar in tars], out, workers=1)
    assert verify(out, workers=1) == []
    manifest = Manifest.load(out)
    places = list(zip(manifest.shard.tolist(), manifest.offset.tolist(), strict=True))
    assert places == sorted(places)
    found = {}
    for sample, (key, _) in enumerate(manifest.names(0, len(manifest))):
        content = Path(manifest.shard_location(manifest.shard[sample])).read_bytes()
        label = manifest.label[sample]
        image = content[manifest.offset[sample] :][: manifest.size[sample]]
        found[key] = (image, manifest.classes[label] if label >= 0 else None)
    return found


def rejects(root: Path) -> dict[str, tuple[str, str]]:
    rows = pq.read_table(root / "out" / "rejects.parquet").to_pylist()
    return {Path(row["path"]).name: (row["reason"], row["detail"]) for row in rows}


def samples() -> dict[str, bytes]:
    members = {}
    for number, image in enumerate(JPEGS):
        members |= {f"{number}.jpg": image, f"{number}.cls": b"%d" % (number % 3), f"{number}.txt": b"words"}
    return members


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
    suffixes = "members end in .jfif, .jpe, .jpeg, .jpg, .png"
    stay = "and tars stay as they are here; unpack them and use `maskfeat-shards build`"
    assert rejects(tmp_path) == {
        "img": (
            "not one image",
            f"4 {suffixes}: .v1.jpg, .v2.jpg, .v3.jpg, ...; names have dots, and the key ends at the first dot",
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


@pytest.mark.parametrize(
    ("member", "said", "label"),
    [
        ("cls", b"3", "3"),
        ("cls", b" 3.0\r\n", "3"),
        ("cls", b"\xef\xbb\xbf3", "3"),
        ("CLS", b"n01440764\n", "n01440764"),
        ("cls", "größe".encode(), "größe"),
        ("cls", b"007", "007"),
        ("cls", b"  \n", None),
        ("json", b'{"label": 3}', "3"),
        ("json", b'{"label": "3"}', "3"),
        ("json", b'{"label": 3.0}', "3"),
        ("json", b'{"label": "tabby cat"}', "tabby cat"),
        ("json", b'{"Class_Name": "cat", "id": 9}', "cat"),
        ("json", b'{"class": "cat", "label": 1}', "1"),
        ("JSON", b'\xef\xbb\xbf{"category_id": 7}', "7"),
        ("json", b'{"label": null}', None),
        ("json", b'{"caption": "a cat"}', None),
        ("json", b"[1, 2]", None),
        ("meta.json", b'{"target": 2}', "2"),
    ],
)
def test_a_label_is_a_name_or_a_number_wherever_it_stands(
    member: str, said: bytes, label: str | None, tmp_path: Path
) -> None:
    assert indexed(tmp_path, make_tar(tmp_path / "a.tar", {"0.jpg": JPEGS[0], f"0.{member}": said})) == {
        "0": (JPEGS[0], label)
    }


@pytest.mark.parametrize(
    ("member", "said", "why"),
    [
        ("cls", b"-1", ".cls: -1 is not a whole number from 0 to 99999"),
        ("cls", b"0.5", ".cls: 0.5 is not a whole number"),
        ("cls", b"100000", ".cls: 100000 is not a whole number"),
        ("cls", b"9" * 5000, ".cls: 99999"),
        ("cls", b"\xff\xfe3\0", ".cls: 'utf-8' codec can't decode byte 0xff"),
        ("cls", b"1" * 2**21, ".cls has more than 1048576 bytes"),
        ("json", b'{"label": true}', ".json: True is neither a name nor a whole number"),
        ("json", b'{"label": [1]}', ".json: [1] is neither"),
        ("json", b'{"label": 1e400}', ".json: inf is not a whole number"),
        ("json", b'{"label": "\\ud800"}', ".json: 'utf-8' codec can't encode"),
        ("json", b'{"label": ' + b"9" * 5000 + b"}", ".json: Exceeds the limit"),
        ("json", b"[" * 100_000, ".json: it is nested too deep"),
        ("json", b'{"label": 1, "label": 2}', ".json: an object has a name twice"),
        ("json", b"{", ".json: Expecting property name"),
    ],
)
def test_a_label_that_cannot_be_read_is_a_reject(member: str, said: bytes, why: str, tmp_path: Path) -> None:
    indexed(tmp_path, make_tar(tmp_path / "a.tar", {"0.jpg": JPEGS[0], "1.jpg": JPEGS[1], f"1.{member}": said}))
    ((reason, detail),) = rejects(tmp_path).values()
    assert reason == "bad label" and detail.startswith(why)


def test_names_and_numbers_of_several_tars_are_numbered_together(tmp_path: Path) -> None:
    first = make_tar(tmp_path / "0.tar", {"a.jpg": JPEGS[0], "a.cls": b"zebra", "b.jpg": JPEGS[1], "b.cls": b"10"})
    second = make_tar(
        tmp_path / "1.tar", {"c.jpg": JPEGS[2], "c.json": b'{"class": "ant"}', "d.jpg": JPEGS[3], "d.cls": b"9"}
    )
    found = indexed(tmp_path, first, second)
    assert [name for _, name in found.values()] == ["zebra", "10", "ant", "9"]
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.classes, manifest.label.tolist()) == (["10", "9", "ant", "zebra"], [3, 0, 2, 1])
    lines: list[str] = []
    index_tars([str(first), str(second)], tmp_path / "again", workers=1, note=lines.append)
    assert lines == [
        f"{tmp_path / 'again'}: labels are partly numbers (such as 10) and partly names (such as ant), so numbers are "
        "names, too, and not kept: classes are numbered by the order of their names"
    ]


def test_an_index_that_an_earlier_version_began_is_finished(tmp_path: Path) -> None:
    tars = [make_tar(tmp_path / f"{n}.tar", {f"{n}.jpg": JPEGS[n], f"{n}.cls": b"%d" % n}) for n in range(3)]

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_tars([str(tar) for tar in tars], tmp_path / "out", workers=1, progress=stop)
    record = tmp_path / "out" / ".build" / "tar-000001.json"
    assert Record.load(str(record)).rows["label"] == [1]  # a number, as then
    fields = json.loads(record.read_text())
    fields["rows"]["label"] = [7]
    record.write_text(json.dumps(fields))
    index_tars([str(tar) for tar in tars], tmp_path / "out", workers=1)
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.label.tolist(), manifest.classes) == ([0, 7, 2], [str(number) for number in range(8)])


@pytest.mark.parametrize(
    ("suffix", "packed", "says"),
    [
        (".tar.gz", gzip.compress, "(gzip), so its members cannot be read by their place; `gunzip` it first"),
        (".tgz", gzip.compress, "`gunzip` it"),
        (".tar", gzip.compress, "`gunzip` it"),
        (".tar.bz2", bz2.compress, "`bunzip2` it"),
        (".tar.xz", lzma.compress, "`unxz` it"),
        (".tar.zst", lambda data: b"\x28\xb5\x2f\xfd" + data, "`unzstd` it"),
        (".tar", lambda data: b"PK\3\4" + data, "`unzip` it"),
    ],
)
def test_a_compressed_tar_says_so(suffix: str, packed: Callable[[bytes], bytes], says: str, tmp_path: Path) -> None:
    plain = make_tar(tmp_path / "plain.tar", samples())
    tar = tmp_path / f"packed{suffix}"
    tar.write_bytes(packed(plain.read_bytes()))
    with pytest.raises(ShardError) as index_error:
        index_tars([str(tar)], tmp_path / "out", workers=1)
    with pytest.raises(ShardError) as source_error:
        list_source(tar)
    outer = make_tar(tmp_path / "outer.tar", {f"ant{suffix}": tar.read_bytes()})
    with pytest.raises(ShardError) as inner_error:
        list_source(outer)
    assert str(index_error.value) == str(source_error.value)
    assert str(index_error.value).startswith(f"{tar}: is compressed (") and says in str(index_error.value)
    assert str(inner_error.value).startswith(f"{outer}/ant{suffix}: is compressed (") and says in str(inner_error.value)


def test_folders_of_a_tar_are_no_classes_and_both_commands_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = make_tar(tmp_path / "tree.tar", {"cat/0.jpg": JPEGS[0], "dog/0.jpg": JPEGS[1]})
    with pytest.raises(ShardError, match="if its folders are classes, unpack it and build the folder"):
        build(tar, tmp_path / "built", workers=1)
    monkeypatch.setattr("sys.argv", ["maskfeat-shards", "index", str(tar), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    said = "its samples lie in folders, which are not taken for classes; if they are, unpack the tars and use"
    assert f"{tmp_path}/out: {said} `maskfeat-shards build`\n" in capsys.readouterr().err


def test_a_tar_that_is_left_out_is_named_with_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tar(tmp_path / "good.tar", {"0.jpg": JPEGS[0], "1.jpg": b"x"})
    (tmp_path / "bad\n.tar").write_bytes(b"text")
    monkeypatch.setattr("sys.argv", ["maskfeat-shards", "index", f"{tmp_path}/*.tar", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    why = "not a readable tar (it begins with b'text'); copy or build it again"
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"left out: {tmp_path}/bad\\n.tar: {why}"
    assert (
        f"has 2 rejects where --max-rejects allows 0 (such as {tmp_path}/bad\\n.tar: unreadable tar, {why})" in said[1]
    )
    assert len(said) == 2


def test_the_same_tars_give_the_same_bytes_with_any_workers(tmp_path: Path) -> None:
    for number in range(3):
        make_tar(
            tmp_path / f"{number}.tar", {f"{number}.jpg": JPEGS[number], f"{number}.cls": b"abc"[number : number + 1]}
        )
    for workers in (1, 2):
        index_tars([f"{tmp_path}/*.tar"], tmp_path / f"out{workers}", workers=workers)
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")
    assert Manifest.load(tmp_path / "out1").classes == ["a", "b", "c"]
