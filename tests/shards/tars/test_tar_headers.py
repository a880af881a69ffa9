"""Headers that were made by hand: right, or one line that says what is wrong, at once."""

import io
import os
import tarfile
import time
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from making_images import encoded, make_tar, picture
from making_tars import END, base256, header, hostile, member, padded, pax, record

from pipeline.data.tarstream import images_in
from shards.files import ShardError
from shards.index import index_tars
from shards.manifest import Manifest
from shards.sources.source import list_source
from shards.tars.headers import members
from shards.tars.samples import samples_of
from shards.text import one_line
from shards.verify import verify

IMAGE = encoded(picture(1), "JPEG")
HOSTILE = hostile(IMAGE)
ROUNDS = int(os.environ.get("MASKFEAT_FUZZ_ROUNDS", "300"))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tar_is_refused_in_one_line_within_a_second(name: str, tmp_path: Path) -> None:
    content, why = HOSTILE[name]
    (tmp_path / "bad.tar").write_bytes(content)
    make_tar(tmp_path / "all.tar", {"good.tar": member(b"1.jpg", IMAGE) + END, "bad.tar": content})
    begun = time.process_time()
    with pytest.raises(ShardError) as caught:
        samples_of(tmp_path / "bad.tar")
    with pytest.raises(ShardError) as inner:
        list_source(tmp_path / "all.tar")
    assert time.process_time() - begun < 1
    assert str(caught.value).startswith(f"{tmp_path}/bad.tar: not a readable tar (")
    assert str(inner.value).startswith(f"{tmp_path}/all.tar: not a readable tar of tars (")
    assert ", in bad.tar); download it again" in str(inner.value)
    for error in (caught, inner):
        assert why in str(error.value) and "\n" not in str(error.value)


def test_bad_tars_do_not_stop_the_others(tmp_path: Path) -> None:
    for name, (content, _) in HOSTILE.items():
        (tmp_path / f"{name}.tar").write_bytes(content)
    make_tar(tmp_path / "zz.tar", {"1.jpg": IMAGE, "1.cls": b"4"})
    notes: list[str] = []
    dataset, _ = index_tars([f"{tmp_path}/*.tar"], tmp_path / "out", workers=1, note=notes.append)
    assert (dataset.samples, dataset.rejects) == (1, len(HOSTILE))
    assert Manifest.load(tmp_path / "out").label.tolist() == [4]
    assert sorted(line.split(": ")[1] for line in notes) == sorted(f"{tmp_path}/{name}.tar" for name in HOSTILE)
    assert verify(tmp_path / "out", workers=1) == []
    assert index_tars([f"{tmp_path}/*.tar"], tmp_path / "out", workers=1)[1]


def test_where_all_tars_are_bad_the_error_names_the_first(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.tar").write_bytes(HOSTILE["minus-512"][0])
    with pytest.raises(ShardError) as caught:
        index_tars([f"{tmp_path}/*.tar"], tmp_path / "out", workers=1)
    assert str(caught.value) == (
        f"{tmp_path}/a.tar: not a readable tar (the header at byte {len(padded(IMAGE)) + 1536} claims -512 bytes); "
        "copy or build it again (of 2 tars, none is readable)"
    )


def test_a_bad_tar_that_was_mended_is_read_when_an_interrupted_index_goes_on(tmp_path: Path) -> None:
    good = make_tar(tmp_path / "0.tar", {"1.jpg": IMAGE, "1.cls": b"4"}).read_bytes()
    (tmp_path / "0.tar").write_bytes(b"x" * len(good))
    make_tar(tmp_path / "1.tar", {"2.jpg": IMAGE})

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_tars([f"{tmp_path}/*.tar"], tmp_path / "out", workers=1, progress=stop)
    (tmp_path / "0.tar").write_bytes(good)
    dataset, _ = index_tars([f"{tmp_path}/*.tar"], tmp_path / "out", workers=1)
    assert (dataset.samples, dataset.rejects) == (2, 0)


def test_a_tar_that_may_not_be_opened_is_named_once_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        make_tar(tmp_path / f"{number}.tar", {f"{number}.jpg": IMAGE})
    opened = Path.open

    def closed(path: Path, *arguments: object, **options: object) -> object:
        if path.name == "0.tar":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", closed)
        with pytest.raises(
            ShardError, match=r"/0\.tar: Permission denied; 1 tars are still to be read: .* run the same command again"
        ):
            index_tars([f"{tmp_path}/*.tar"], tmp_path / "out", workers=1)
    assert len(list((tmp_path / "out").glob("*.idx"))) == 2
    assert index_tars([f"{tmp_path}/*.tar"], tmp_path / "out", workers=1)[0].samples == 3


def test_long_names_and_sizes_are_read_as_tarfile_reads_them(tmp_path: Path) -> None:
    parts = [
        pax(record(b"comment", b"all"), tarfile.XGLTYPE),
        header(b"long", 301, tarfile.GNUTYPE_LONGNAME) + padded(b"l" * 296 + b".jpg\0") + member(b"short", b"1"),
        pax(record(b"path", "ä/ö.jpg".encode()) + record(b"SCHILY.xattr.user.x", b"\n=" * 9999)) + member(b"y", b"22"),
        pax(record(b"size", b"3")) + header(b"z.jpg", 0) + padded(b"333"),
        pax(record(b"path", b"bytes-\xff.jpg")) + member(b"w", b"4444"),
        header(b"big.jpg", base256(5)) + padded(b"55555"),
        header(b"folder/", 0, tarfile.DIRTYPE) + header(b"link.jpg", 0, tarfile.SYMTYPE, b"z.jpg"),
        member(b"last.jpg", b""),
    ]
    path = tmp_path / "a.tar"
    path.write_bytes(b"".join(parts) + END)
    with path.open("rb") as file:
        found = list(members(file, 0, path.stat().st_size))
    with tarfile.open(path, encoding="utf-8") as tar:
        expected = [(info.name, info.type, info.offset_data, info.size) for info in tar if not info.isdir()]
    assert [(one.name, one.type, one.offset, one.size) for one in found] == expected
    assert [one.size for one in found] == [1, 2, 3, 4, 5, 0, 0]


def test_backups_of_gnu_are_tars_like_others(tmp_path: Path) -> None:
    """Its volume label and lists of folders are no samples, and times are not the front of a name."""
    parts = [header(b"label", 0, b"V"), header(b"x/", 7, b"D") + padded(b"Y1.jpg\0"), member(b"x/1.jpg", IMAGE)]
    blocks = bytearray(b"".join(parts))
    at = len(blocks) - len(padded(IMAGE)) - 512
    blocks[at + 257 : at + 265], blocks[at + 345 : at + 356] = b"ustar  \0", b"%011o" % 1_600_000_000
    blocks[at + 148 : at + 156] = b" " * 8
    blocks[at + 148 : at + 156] = b"%06o\0 " % sum(blocks[at : at + 512])
    (tmp_path / "a.tar").write_bytes(bytes(blocks) + END)
    assert samples_of(tmp_path / "a.tar") == [("x/1", {"jpg": (at + 512, len(IMAGE), "x/1.jpg")}, None)]


def test_sparse_files_are_told_whoever_wrote_them(tmp_path: Path) -> None:
    for number, fields in enumerate(
        [
            {b"GNU.sparse.map": b"-1,-5,0", b"GNU.sparse.name": b"a.jpg"},
            {b"GNU.sparse.size": b"x", b"path": b"a.jpg"},
            {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": b"a.jpg"},
        ]
    ):
        records = b"".join(record(key, value) for key, value in fields.items())
        path = tmp_path / f"{number}.tar"
        path.write_bytes(pax(records) + member(b"raw", IMAGE) + member(b"b.jpg", IMAGE) + END)
        assert [(key, list(found), unsafe) for key, found, unsafe in samples_of(path)] == [
            ("a", [], "a.jpg is not a regular file"),
            ("b", ["jpg"], None),
        ]


def test_many_members_take_little_time(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"".join(header(b"a.%d" % n, 0) for n in range(10_000)) + END)
    begun = time.process_time()
    (sample,) = samples_of(tmp_path / "a.tar")
    assert time.process_time() - begun < 5
    assert (sample.key, len(sample.members), sample.members["9999"][0]) == ("a", 10_000, 10_000 * 512)


def test_what_is_not_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.tar")
    (tmp_path / "folder.tar").mkdir()
    for path in (tmp_path / "fifo.tar", tmp_path / "folder.tar", Path("/dev/zero")):
        with pytest.raises(ShardError, match=f"{path}: is not a file; give "):
            samples_of(path)
        with pytest.raises(ShardError, match=f"{path}: is not a file; give tars"):
            index_tars([str(path)], tmp_path / "out", workers=1)


def resealed(block: bytes) -> bytes:
    """A header with the checksum that it should have."""
    block = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def damaged(content: bytes, random: Random) -> bytes:
    """A tar in which a block or two were replaced, removed, repeated, or given another size, type or extension."""
    blocks = [content[at : at + 512] for at in range(0, len(content), 512)]
    for _ in range(random.choice([1, 1, 2, 4])):
        place = random.randrange(len(blocks))
        block, size = blocks[place], random.choice([-1, -512, 2**62, 2**80, random.randrange(-9999, 9999)])
        kind = random.randrange(7)
        if kind == 0:
            blocks[place] = resealed(block[:124] + base256(size) + block[136:])
        elif kind == 1:
            blocks[place] = resealed(block[:156] + random.choice(b"0123457LKSgxXDVM\0").to_bytes() + block[157:])
        elif kind == 2:
            at = random.randrange(500)
            blocks[place] = resealed(block[:at] + random.randbytes(12) + block[at + 12 :])
        elif kind == 3:
            del blocks[place : place + random.randrange(1, 4)]
        elif kind == 4:
            blocks[place:place] = blocks[random.randrange(len(blocks)) :][:3]
        elif kind == 5:
            key = random.choice([b"size", b"path", b"linkpath", b"GNU.sparse.map", b"GNU.sparse.major"])
            value = random.choice([b"%d" % size, random.randbytes(9)])
            blocks[place:place] = [pax(record(key, value), random.choice([b"x", b"X", b"g"]))]
        else:
            blocks[place:place] = [pax(random.choice([random.randbytes(300), b"9" * 300, b"2 " * 150]))]
        blocks = blocks or [END]
    return b"".join(blocks)[: None if random.random() < 0.8 else random.randrange(len(content))]


def test_random_damage_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    """Everything that is read is inside the tar."""
    random, refused = Random(0), 0
    parts = [
        member(b"0.jpg", IMAGE) + member(b"0.cls", b"3"),
        pax(record(b"path", b"1.jpg")) + member(b"y", IMAGE),
        header(b"long", 301, tarfile.GNUTYPE_LONGNAME) + padded(b"l" * 296 + b".jpg\0") + member(b"short", b"1"),
        header(b"link", 20, tarfile.GNUTYPE_LONGLINK) + padded(b"0.jpg") + header(b"2.jpg", 0, tarfile.LNKTYPE),
        pax(record(b"comment", b"x"), tarfile.XGLTYPE) + header(b"s.jpg", 0, tarfile.GNUTYPE_SPARSE),
    ]
    tar, outer = tmp_path / "a.tar", tmp_path / "outer.tar"
    for _ in range(ROUNDS):
        content = damaged(b"".join(random.sample(parts, len(parts))) + END, random)
        tar.write_bytes(content)
        outer.write_bytes(member(b"cat.tar", member(b"1.jpg", IMAGE) + END) + member(b"dog.tar", content) + END)
        begun = time.process_time()
        for read in (samples_of, list_source):
            path = tar if read is samples_of else outer
            try:
                found = read(path)
            except ShardError as error:
                assert str(error).startswith(str(path)) and one_line(str(error)) == str(error)
                refused += 1
                continue
            places = [place[:2] for sample in found for place in sample.members.values()] if path == tar else []
            if path == outer:
                places = list(zip(found.offsets, found.sizes, strict=True))
            assert all(0 <= at <= at + size <= path.stat().st_size for at, size in places)
        with suppress(tarfile.TarError):
            list(images_in(io.BytesIO(content)))
        assert time.process_time() - begun < 2
    assert ROUNDS / 2 < refused < 2 * ROUNDS  # some were harmless


def test_an_inner_tar_ends_where_its_member_does(tmp_path: Path) -> None:
    """The header of what follows it in the outer tar is not the inner tar's."""
    content = io.BytesIO(member(b"cat.tar", member(b"1.jpg", IMAGE)) + member(b"dog.jpg", IMAGE) + END)
    (tmp_path / "all.tar").write_bytes(content.getvalue())
    with pytest.raises(ShardError, match=r"no header at byte \d+, where .*, in cat\.tar\)"):
        list_source(tmp_path / "all.tar")
