"""Headers that were made by hand: right, or one line that says what is wrong, at once."""

import io
import os
import tarfile
import time
from pathlib import Path

import pytest
from making_images import encoded, make_tar, picture
from making_tars import END, base256, header, hostile, member, padded, pax, record

from shards.files import ShardError
from shards.index import index_tars
from shards.manifest import Manifest
from shards.source import list_source
from shards.tarfiles import samples_of
from shards.tarheaders import members
from shards.verify import verify

IMAGE = encoded(picture(1), "JPEG")
HOSTILE = hostile(IMAGE)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tar_is_refused_in_one_line_within_a_second(name: str, tmp_path: Path) -> None:
    content, why = HOSTILE[name]
    (tmp_path / "bad.tar").write_bytes(content)
    make_tar(tmp_path / "all.tar", {"good.tar": member(b"1.jpg", IMAGE) + END, "bad.tar": content})
    begun = time.monotonic()
    with pytest.raises(ShardError) as caught:
        samples_of(tmp_path / "bad.tar")
    with pytest.raises(ShardError) as inner:
        list_source(tmp_path / "all.tar")
    assert time.monotonic() - begun < 1
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
            ("a", [], "a.jpg is not a plain file"),
            ("b", ["jpg"], None),
        ]


def test_many_members_take_little_time(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"".join(header(b"a.%d" % n, 0) for n in range(10_000)) + END)
    begun = time.monotonic()
    (sample,) = samples_of(tmp_path / "a.tar")
    assert time.monotonic() - begun < 5
    assert (sample.key, len(sample.members), sample.members["9999"][0]) == ("a", 10_000, 10_000 * 512)


def test_what_is_not_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.tar")
    (tmp_path / "folder.tar").mkdir()
    for path in (tmp_path / "fifo.tar", tmp_path / "folder.tar", Path("/dev/zero")):
        with pytest.raises(ShardError, match=f"{path}: is not a file; give "):
            samples_of(path)
        with pytest.raises(ShardError, match=f"{path}: is not a file; give tars"):
            index_tars([str(path)], tmp_path / "out", workers=1)


def test_an_inner_tar_ends_where_its_member_does(tmp_path: Path) -> None:
    """The header of what follows it in the outer tar is not the inner tar's."""
    content = io.BytesIO(member(b"cat.tar", member(b"1.jpg", IMAGE)) + member(b"dog.jpg", IMAGE) + END)
    (tmp_path / "all.tar").write_bytes(content.getvalue())
    with pytest.raises(ShardError, match=r"no header at byte \d+, where .*, in cat\.tar\)"):
        list_source(tmp_path / "all.tar")
