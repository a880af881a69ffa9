import errno
import json
import pickle
import re
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import pyarrow.parquet as pq
import pytest
from making_images import contents, damage_header, encoded, make_tar, picture
from servers import http_server

from shards.build import build
from shards.files import ShardError
from shards.index import index_tars
from shards.manifest import Dataset, Manifest
from shards.tars import samples as tarfiles
from shards.tars.headers import Member
from shards.verify import verify


def jpeg(seed: int) -> bytes:
    return encoded(picture(seed, 30 + seed), "JPEG")


def like_timm(path: Path, seeds: range, **more: bytes) -> Path:
    """Make a tar like timm's ImageNet tars: `.jpg` and `.cls`, with `more` members at its end."""
    members: dict[str, bytes] = {}
    for seed in seeds:
        members |= {f"n0144_{seed}.jpg": jpeg(seed), f"n0144_{seed}.cls": b"%d" % (seed % 5)}
    return make_tar(path, members | more)


def like_img2dataset(path: Path, seeds: range) -> Path:
    members: dict[str, bytes] = {}
    for seed in seeds:
        facts = {"caption": "a, b", "url": "https://example.org/a.jpg", "status": "success"}
        members |= {f"{seed:09d}.jpg": jpeg(seed), f"{seed:09d}.json": json.dumps(facts).encode()}
        members[f"{seed:09d}.txt"] = b"a, b"
    return make_tar(path, members)


def rejects(root: Path) -> dict[str, tuple[str, str]]:
    rows = pq.read_table(root / "rejects.parquet").to_pylist()
    return {row["path"]: (row["reason"], row["detail"]) for row in rows}


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    folder = tmp_path / "tars"
    folder.mkdir()
    for number in range(3):
        like_timm(folder / f"{number:03d}.tar", range(4 * number, 4 * number + 4 - number))
    return folder


def test_the_manifest_is_true_of_tars_that_stay_where_and_as_they_are(tars: Path, tmp_path: Path) -> None:
    before = contents(tars)
    dataset, finished_before = index_tars([f"{tars}/{{000..002}}.tar"], tmp_path / "out", workers=1)
    manifest = Manifest.load(tmp_path / "out")
    assert contents(tars) == before
    assert (finished_before, dataset.samples, dataset.options, dataset.ignored) == (False, 9, None, 0)
    assert manifest.shard_names == [f"{tars}/{number:03d}.tar" for number in range(3)]
    assert manifest.counts.tolist() == [4, 3, 2]
    assert manifest.label.tolist() == [0, 1, 2, 3, 4, 0, 1, 3, 4]
    assert manifest.classes == ["0", "1", "2", "3", "4"]
    seeds = [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert manifest.names(0, 9) == [(f"n0144_{seed}", f"n0144_{seed}.jpg") for seed in seeds]
    for sample, seed in enumerate(seeds):
        tar = Path(manifest.shard_location(manifest.shard[sample])).read_bytes()
        data = tar[manifest.offset[sample] : manifest.offset[sample] + manifest.size[sample]]
        assert data == jpeg(seed)
        assert manifest.crc32c[sample] == google_crc32c.value(data)
        assert (manifest.height[sample], manifest.width[sample]) == (30 + seed, 56)
    assert verify(tmp_path / "out") == []
    assert index_tars([f"{tars}/*.tar"], tmp_path / "out")[1]


def test_workers_and_an_interruption_change_no_byte(tars: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        index_tars([f"{tars}/*.tar"], tmp_path / str(workers), workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_tars([f"{tars}/*.tar"], tmp_path / "again", workers=1, progress=stop)
    with pytest.raises(ShardError, match="contains an unfinished build of other files or options"):
        index_tars([f"{tars}/*.tar"], tmp_path / "again", workers=1, max_pixels=7)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "again").glob("*.idx")}
    index_tars([f"{tars}/*.tar"], tmp_path / "again", workers=1)
    assert contents(tmp_path / "again") == contents(tmp_path / "1")
    assert len(before) == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a finished tar was read again"


def test_a_data_set_beside_its_tars_can_be_moved(tars: Path, tmp_path: Path) -> None:
    index_tars([f"{tars}/*.tar"], tars, workers=1)
    tars.rename(tmp_path / "moved")
    manifest = Manifest.load(tmp_path / "moved")
    assert manifest.shard_names == ["000.tar", "001.tar", "002.tar"]
    assert (tmp_path / "moved" / "001.idx").is_file()
    assert verify(tmp_path / "moved") == []


def test_files_of_others_are_not_replaced(tars: Path) -> None:
    (tars / "001.idx").write_text("made by DALI")
    with pytest.raises(ShardError, match=r"contains other files \(001\.idx\); choose another folder or move them away"):
        index_tars([f"{tars}/*.tar"], tars, workers=1)
    assert (tars / "001.idx").read_text() == "made by DALI"
    assert not (tars / "manifest.parquet").exists()


def test_tars_of_one_file_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        like_img2dataset(tmp_path / folder / "00000.tar", range(2))
    index_tars([f"{tmp_path}/{{a,b}}/00000.tar"], tmp_path / "out", workers=1)
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.shard_names == [f"{tmp_path}/{folder}/00000.tar" for folder in "ab"]
    assert (manifest.label.tolist(), manifest.classes) == ([-1] * 4, [])
    assert len(list((tmp_path / "out").glob("00000-*.idx"))) == 2
    assert verify(tmp_path / "out") == []


def test_a_tar_that_is_named_twice_counts_once(tars: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "out", tars):
        twice = [f"{tars}/000.tar", f"{tars}/../tars/000.tar", f"{tars}/./00?.tar"]
        assert [shard.samples for shard in index_tars(twice, out, workers=1)[0].shards] == [4, 3, 2]
        assert verify(out) == []


def test_tars_whose_index_would_be_one_file_are_refused(tars: Path, tmp_path: Path) -> None:
    shutil.copy(tars / "001.tar", tars / "000.TAR")
    with pytest.raises(ShardError, match=r"000\.tar and 000\.TAR: both would have the index 000\.idx; rename one"):
        index_tars([f"{tars}/000.tar", f"{tars}/000.TAR"], tars, workers=1)
    assert [shard.samples for shard in index_tars([f"{tars}/000.*"], tmp_path / "out", workers=1)[0].shards] == [3, 4]
    assert verify(tmp_path / "out") == []


def test_what_cannot_be_used_as_it_is_is_rejected(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path / "exploded").touch, ()

    webp, deep = encoded(picture(1), "WEBP"), b"[" * 100_000
    png = encoded(picture(2, 33), "PNG")
    samples: dict[str, bytes] = {
        "good.JPEG": jpeg(0),
        "good.json": b'{"label": 2}',
        "plain.png": png,
        "bomb.pth": pickle.dumps(Bomb()),
        "bomb.pickle": pickle.dumps(Bomb()),
        "both.jpg": jpeg(0),
        "both.png": png,
        "webp.jpg": webp,
        "torn.jpg": jpeg(0)[:300],
        "word.jpg": jpeg(0),
        "word.cls": b"0.5",
        "huge.jpg": jpeg(0),
        "huge.cls": b"123456",
        "deep.jpg": jpeg(0),
        "deep.json": deep,
        "flag.jpg": jpeg(1),
        "flag.json": b'{"label": true}',
    }
    tar_path = make_tar(tmp_path / "0.tar", samples)
    with tarfile.open(tar_path, "a") as tar:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    dataset, _ = index_tars([str(tar_path)], tmp_path / "out", workers=1)
    manifest = Manifest.load(tmp_path / "out")
    assert [key for key, _ in manifest.names(0, 2)] == ["good", "plain"]
    assert manifest.label.tolist() == [2, -1]
    found = rejects(tmp_path / "out")
    assert {Path(path).name: reason for path, (reason, _) in found.items()} == {
        "bomb": "not one image",
        "both": "not one image",
        "webp": "needs rewriting",
        "torn": "corrupt",
        "word": "bad label",
        "huge": "bad label",
        "deep": "bad label",
        "flag": "bad label",
        "link": "unsafe member",
    }
    assert found[f"{tar_path}/link"][1] == "link.jpg is not a regular file"
    assert found[f"{tar_path}/huge"][1] == ".cls: 123456 is not a whole number from 0 to 99999"
    assert dataset.rejects == 9
    assert not (tmp_path / "exploded").exists()
    assert verify(tmp_path / "out") == []


def test_tars_without_a_usable_image_are_left_out(tars: Path, tmp_path: Path) -> None:
    make_tar(tars / "001.tar", {})
    make_tar(tars / "002.tar", {"a.jpg": b"text"})
    index_tars([f"{tars}/*.tar"], tmp_path / "out", workers=1)
    assert Manifest.load(tmp_path / "out").shard_names == [f"{tars}/000.tar"]
    with pytest.raises(ShardError, match=r"001\.tar: none of its 0 files can be used; fix"):
        index_tars([f"{tars}/001.tar"], tmp_path / "none", workers=1)


def test_a_changed_tar_is_found_by_verify_and_refused_by_index(tars: Path, tmp_path: Path) -> None:
    index_tars([f"{tars}/*.tar"], tmp_path / "out", workers=1)
    manifest = Manifest.load(tmp_path / "out")
    data = bytearray((tars / "001.tar").read_bytes())
    data[manifest.offset[5] + 9] ^= 1
    (tars / "001.tar").write_bytes(data)
    assert [str(problem) for problem in verify(tmp_path / "out")] == [
        f"{tars}/001.tar: has other bytes: 1 of its 3 samples are damaged",
        f"{tars}/001.tar: sample n0144_5 (n0144_5.jpg) is damaged",
    ]
    like_timm(tars / "001.tar", range(7))
    with pytest.raises(ShardError, match="contains a data set of other files or options"):
        index_tars([f"{tars}/*.tar"], tmp_path / "out")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{tmp}/nothing-*.tar", r"nothing-\*\.tar: no such tar"),
        ("{tmp}/gone.tar", r"gone\.tar: no such tar; correct the path"),
        ("{tmp}/{{0..", "its braces do not match"),
        ("none://a.tar", "none://a.tar: cannot be read: its protocol is not one of file, http"),
        ("{tmp}/text.tar", r"text\.tar: not a readable tar"),
    ],
)
def test_what_is_no_tar_is_an_error(pattern: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_bytes(b"x" * 1024)
    with pytest.raises(ShardError, match=message):
        index_tars([pattern.format(tmp=tmp_path)], tmp_path / "out", workers=1)


def test_a_closed_folder_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_file(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", is_file)  # nothing is closed to root
    with pytest.raises(ShardError, match=r"closed/a\.tar: Permission denied; make its folder readable"):
        index_tars([f"{tmp_path}/closed/a.tar"], tmp_path / "out", workers=1)


@pytest.mark.parametrize("how", ["flip", "cut", "cut within"])
@pytest.mark.parametrize("number", [3, 10])  # the sample after the first three, and the end mark
def test_nothing_is_lost_behind_a_damaged_header(how: str, number: int, tmp_path: Path) -> None:
    """A header that tarfile cannot read is the end of the tar to it."""
    tar = make_tar(tmp_path / "a.tar", {f"{seed}.jpg": jpeg(seed) for seed in range(10)})
    assert index_tars([str(tar)], tmp_path / "whole", workers=1)[0].samples == 10
    damage_header(tar, number, how)
    with pytest.raises(ShardError, match=r"a\.tar: not a readable tar \(no header at byte \d+, .* or build it again"):
        index_tars([str(tar)], tmp_path / "out", workers=1)


def test_a_set_that_was_indexed_from_a_damaged_tar_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = make_tar(tmp_path / "a.tar", {f"{seed}.jpg": jpeg(seed) for seed in range(10)})
    damage_header(tar, 3, "flip")
    members = tarfiles.members

    def until_damage(file: BinaryIO, stop: int) -> Iterator[Member]:
        with suppress(tarfile.ReadError):
            yield from members(file, stop=stop)

    with monkeypatch.context() as patch:  # as before headers were checked
        patch.setattr(tarfiles, "members", until_damage)
        assert index_tars([str(tar)], tmp_path / "out", workers=1)[0].samples == 3
    (problem,) = verify(tmp_path / "out", workers=1)
    assert "a.tar: not a readable tar (no header at byte" in str(problem)


def test_tars_behind_urls_are_described_as_those_on_disk(tars: Path, tmp_path: Path) -> None:
    served = shutil.copytree(tars, tmp_path / "served")
    with http_server(served) as server:
        index_tars([f"{server.url}/{{000..002}}.tar"], tmp_path / "remote", workers=1)
        index_tars([f"{tars}/{{000..002}}.tar"], tmp_path / "local", workers=1)
        remote, local = Manifest.load(tmp_path / "remote"), Manifest.load(tmp_path / "local")
        assert remote.shard_names[1] == f"{server.url}/001.tar"
        assert remote.identity == local.identity
        assert verify(tmp_path / "remote", workers=1) == []
        (served / "001.tar").write_bytes(b"")
        problems = [str(problem) for problem in verify(tmp_path / "remote", workers=1)]
        assert problems[0].startswith(f"{server.url}/001.tar: has 0 bytes instead of ")


def test_a_set_beside_tars_of_odd_names_can_be_served(tmp_path: Path) -> None:
    names = ["50%20.tar", "a b.tar", "h#x.tar", "q?x=1&y.tar", "ä+.tar"]
    for seed, name in enumerate(names):
        like_timm(tmp_path / name, range(seed, seed + 1))
    index_tars([f"{tmp_path}/*.tar"], tmp_path, workers=1)
    with http_server(tmp_path) as server:
        assert Manifest.load(server.url).shard_names == names
        assert verify(server.url, workers=1) == []


def test_a_url_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with http_server(tmp_path) as server, pytest.raises(ShardError) as caught:
        index_tars([f"{server.url}/gone.tar"], tmp_path / "out", workers=1)
    assert re.match(
        rf"{server.url}/gone\.tar: 404 Not Found; 1 tars are still to be read: .* run the same", str(caught.value)
    )


def test_a_url_that_is_not_found_does_not_stop_the_others(tars: Path, tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    shutil.copy(tars / "000.tar", served / "0.tar")
    with http_server(served) as server:
        urls = [f"{server.url}/gone.tar", f"{server.url}/0.tar"]
        with pytest.raises(ShardError, match=r"/gone\.tar: 404 Not Found; 1 tars are still to be read"):
            index_tars(urls, tmp_path / "out", workers=1)
        assert len(list((tmp_path / "out").glob("*.idx"))) == 1
        shutil.copy(tars / "001.tar", served / "gone.tar")
        assert index_tars(urls, tmp_path / "out", workers=1)[0].samples == 7


def test_shards_built_here_can_be_indexed_again(tmp_path: Path) -> None:
    for number in range(5):
        folder = tmp_path / "source" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    build(tmp_path / "source", tmp_path / "built", samples_per_shard=3, workers=1)
    index_tars([f"{tmp_path}/built/*.tar"], tmp_path / "out", workers=1)
    built, indexed = Manifest.load(tmp_path / "built"), Manifest.load(tmp_path / "out")
    for column in ("shard", "offset", "size", "label", "height", "width", "crc32c"):
        assert np.array_equal(getattr(built, column), getattr(indexed, column))
    shards = zip(Dataset.load(built.root).shards, Dataset.load(indexed.root).shards, strict=True)
    assert all((one.sha256, one.samples) == (other.sha256, other.samples) for one, other in shards)
    for name in ("shard-000000", "shard-000001"):
        (index,) = (tmp_path / "out").glob(f"{name}-*.idx")
        assert index.read_bytes() == (tmp_path / "built" / f"{name}.idx").read_bytes()
