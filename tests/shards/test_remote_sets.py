"""Data sets behind URLs: built on S3, killed and resumed there, and used from S3 and HTTP."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from making_images import contents, make_tree, pixels
from PIL import Image
from servers import S3, http_server

import shards
from shards import storage
from shards.build import build
from shards.cli import main
from shards.files import ShardError
from shards.index import index_tars
from shards.making.holdout import Validation
from shards.manifest import Dataset, Manifest
from shards.storage import StorageError
from shards.verify import verify

ENVIRONMENT = {"PYTHONPATH": str(Path(shards.__file__).parents[1])}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = make_tree(tmp_path_factory.mktemp("source"), 23)
    (source / "ant" / "bad.jpg").write_bytes(b"")
    (source / "bee" / "copy.jpg").write_bytes((source / "ant" / "000.JPG").read_bytes())
    return source


@pytest.fixture(scope="module")
def local(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "set"
    build(source, out, samples_per_shard=5, workers=1)
    return out


def stored(url: str) -> dict[str, bytes]:
    """Every file below a URL: relative path to bytes."""
    filesystem, root = fsspec.core.url_to_fs(url)
    filesystem.invalidate_cache()
    return {path.removeprefix(f"{root}/"): filesystem.cat_file(path) for path in filesystem.find(root)}


def equal(one: Manifest, other: Manifest) -> bool:
    columns = ("shard_bytes", "counts", "shard", "offset", "size", "label", "height", "width", "crc32c")
    same = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in columns)
    return same and (one.identity, one.classes, one.shard_names) == (other.identity, other.classes, other.shard_names)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_build_to_s3_has_the_bytes_of_a_local_one(workers: int, source: Path, local: Path, s3: S3) -> None:
    out = f"{s3.bucket}/built-by-{workers}"
    dataset, finished_before = build(source, out, samples_per_shard=5, workers=workers)
    assert not finished_before
    assert stored(out) == contents(local)
    assert build(source, out, samples_per_shard=5, workers=1) == (dataset, True)
    with pytest.raises(ShardError, match="contains a data set of other files or options"):
        build(source, out, samples_per_shard=6, workers=1)


def test_a_hold_out_in_a_store_has_the_bytes_of_a_local_one(source: Path, s3: S3, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "source")
    for path in list((tmp_path / "source").rglob("*.*")):
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    for root in (str(tmp_path), f"{s3.bucket}/held-out"):
        build(tmp_path / "source", f"{root}/set", validation=Validation("50%", f"{root}/set-validation"), workers=2)
    for name in ("set", "set-validation"):
        assert stored(f"{s3.bucket}/held-out/{name}") == contents(tmp_path / name)
    assert Dataset.load(tmp_path / "set").rejects > 0


@pytest.mark.parametrize("store", ["s3", "http"])
def test_a_data_set_behind_a_url_is_read_as_a_local_one(
    store: str, local: Path, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with http_server(local.parent) as server:
        root = f"{server.url}/set"
        if store == "s3":
            root = f"{s3.bucket}/copied"
            for path in local.iterdir():
                storage.upload(path, storage.join(root, path.name))
        here, there = Manifest.load(local), Manifest.load(root)
        assert (there.root, here.root) == (root, str(local))
        assert equal(here, there)
        assert Dataset.load(root) == Dataset.load(local)
        assert here.names(0, len(here)) == there.names(0, len(there))
        assert there.shard_bytes.tolist() == [(local / name).stat().st_size for name in there.shard_names]
        assert there.shard_location(2) == f"{root}/{there.shard_names[2]}"
        part = storage.read(there.shard_location(there.shard[7]), int(there.offset[7]), int(there.size[7]))
        tar = Path(here.shard_location(here.shard[7])).read_bytes()
        assert part == tar[here.offset[7] :][: here.size[7]]
        assert verify(root) == []

        for command in (["info", str(root)], ["preview", str(root), "--out", str(tmp_path / "page.html")]):
            monkeypatch.setattr(sys, "argv", ["maskfeat-shards", *command])
            with pytest.raises(SystemExit) as exit:
                main()
            assert exit.value.code == 0
        out = capsys.readouterr().out
        assert f"identity       {here.identity}\n" in out
        assert "duplicates     1 (" in out
        assert (tmp_path / "page.html").read_text().count("<img ") > 20


def test_verify_names_what_is_damaged_missing_or_strange_on_s3(local: Path, s3: S3, tmp_path: Path) -> None:
    root = f"{s3.bucket}/damaged"
    manifest = Manifest.load(local)
    damaged = bytearray((local / "shard-000001.tar").read_bytes())
    damaged[manifest.offset[manifest.counts[0] + 1]] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)
    for path in local.iterdir():
        if path.name != "shard-000002.tar":
            damage = path.name == "shard-000001.tar"
            storage.upload(tmp_path / "damaged" if damage else path, f"{root}/{path.name}")
    storage.upload(local / "shard-000002.tar", f"{root}/other.tar")
    sample = int(manifest.counts[0] + 1)
    key, path = manifest.names(sample, sample + 1)[0]
    assert [str(problem) for problem in verify(root)] == [
        f"shard-000001.tar: has other bytes: 1 of its {manifest.counts[1]} samples are damaged",
        f"shard-000001.tar: sample {key} ({path}) is damaged",
        "shard-000002.tar: cannot be read: not found",
        "other.tar: is not part of the data set; move it away",
    ]


def test_what_is_not_there_is_one_clear_error(s3: S3, local: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ShardError, match=rf"^{s3.bucket}/nothing: has no dataset\.json, so it is not a finished data set"
    ):
        Manifest.load(f"{s3.bucket}/nothing")
    with http_server(local.parent) as server:
        server.fail(403, times=9)
        with pytest.raises(ShardError, match=r"/set/dataset\.json: cannot be read: 403 Forbidden"):
            Manifest.load(f"{server.url}/set")
    password = "not-for-" + "your-eyes"
    with pytest.raises(ShardError, match="credentials come from the environment") as caught:
        build(make_tree(tmp_path / "source", 1), f"s3://me:{password}@bucket/set", workers=1)
    assert password not in str(caught.value)


def test_kill_9_of_a_build_to_s3_then_a_re_run_does_the_rest(s3: S3, tmp_path: Path) -> None:
    source, out = tmp_path / "source", f"{s3.bucket}/killed"
    source.mkdir()
    for number in range(24):
        Image.fromarray(pixels(number, 400, 400)).save(source / f"{number}.bmp")
    build(source, tmp_path / "undisturbed", samples_per_shard=2, workers=1)
    command = [sys.executable, "-m", "shards.cli", "build", str(source), out, "--samples-per-shard=2", "--workers=1"]
    process = subprocess.Popen(command, env=os.environ | ENVIRONMENT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(recorded := [name for name in storage.listing(f"{out}/.build") if name.startswith("shard-")]) < 4:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not storage.size_of(f"{out}/dataset.json")
    modified = fsspec.filesystem("s3").modified
    before = {name: modified(f"{out}/{name.removesuffix('.json')}.tar") for name in recorded}

    build(source, out, samples_per_shard=2, workers=1)
    assert stored(out) == contents(tmp_path / "undisturbed")
    assert before == {name: modified(f"{out}/{name.removesuffix('.json')}.tar") for name in recorded}


def test_an_outage_at_any_upload_then_a_re_run_gives_the_same_bytes(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_tree(tmp_path / "source", 5)
    build(source, tmp_path / "undisturbed", samples_per_shard=3, workers=1)
    expected = contents(tmp_path / "undisturbed")
    upload = storage.upload
    last = 0
    while True:
        out, calls = f"{s3.bucket}/outage-{last}", 0

        def upload_or_fail(path: Path, url: str, last: int = last) -> None:
            nonlocal calls
            if calls == last:
                raise StorageError(110, "timed out", url)
            calls += 1
            upload(path, url)

        with monkeypatch.context() as patched:
            patched.setattr("shards.storage.upload", upload_or_fail)
            try:
                build(source, out, samples_per_shard=3, workers=1)
                break
            except ShardError as error:
                assert "timed out; " in str(error)
                assert "run the same command again" in str(error)
        build(source, out, samples_per_shard=3, workers=1)
        assert stored(out) == expected
        last += 1
    assert stored(out) == expected
    assert last == 1 + 2 * 3 + 4  # build.json, two shards' tar, index and record, and the four at the end


def test_index_describes_tars_on_s3_and_may_write_there(local: Path, s3: S3, tmp_path: Path) -> None:
    tars = sorted(local.glob("*.tar"))
    for path in tars:
        storage.upload(path, f"{s3.bucket}/tars/{path.name}")
    urls = [f"{s3.bucket}/tars/{path.name}" for path in tars]
    index_tars(urls, tmp_path / "here", workers=1)
    index_tars(urls, f"{s3.bucket}/index", workers=2)
    assert stored(f"{s3.bucket}/index") == contents(tmp_path / "here")
    manifest = Manifest.load(f"{s3.bucket}/index")
    assert [manifest.shard_location(shard) for shard in range(len(urls))] == urls
    assert manifest.crc32c.tolist() == Manifest.load(local).crc32c.tolist()
    assert verify(f"{s3.bucket}/index") == []
