"""Builds that are killed, interrupted or out of space: the next run ends with the same bytes."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from making_images import contents, encoded, make_tree, pixels
from PIL import Image

import shards
from shards.build import build
from shards.files import ShardError
from shards.making.engines import run
from shards.text import size_of

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(shards.__file__).parents[1])}
SHARDS = 16


@pytest.fixture(scope="module")
def slow_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose conversion to PNG takes long enough to be killed in."""
    root = tmp_path_factory.mktemp("slow")
    for number in range(2 * SHARDS):
        Image.fromarray(pixels(number, 400, 400)).save(root / f"{number}.bmp")
    return root


@pytest.fixture(scope="module")
def undisturbed(slow_source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    build(slow_source, out, samples_per_shard=2, workers=1)
    return contents(out)


def start(source: Path, out: Path, workers: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "shards.cli", "build", source, out]
    options = ["--samples-per-shard", "2", "--workers", str(workers)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*map(str, command), *options],
        env=ENVIRONMENT,
        text=True,
        stdout=pipe,
        stderr=pipe,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells switch it off in the background
    )


def wait_for_records(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while len(list((out / ".build").glob("shard-*.json"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def settled(out: Path) -> dict[Path, int]:
    """Return the files and their times once nothing is written any more, since workers end by themselves."""
    deadline, before = time.monotonic() + 60, None
    while (files := {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.exists()}) != before:
        assert time.monotonic() < deadline
        before = files
        time.sleep(0.5)
    return files


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_in_the_midst_then_a_re_run_gives_the_same_bytes(
    workers: int, slow_source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(slow_source, out, workers)
    wait_for_records(out, 5, process)
    process.kill()
    process.communicate()
    left = settled(out)
    assert not (out / "dataset.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}

    damaged = sorted(kept)[0]
    damaged.write_bytes(damaged.read_bytes()[:-512])
    build(slow_source, out, samples_per_shard=2, workers=3 - workers)
    assert contents(out) == undisturbed
    recorded = [path for path in kept if (out / ".build" / f"{path.stem}.json") in left]
    assert len(recorded) >= 5
    for path in set(recorded) - {damaged}:
        assert path.stat().st_mtime_ns == kept[path], "a finished shard was written again"


def test_ctrl_c_is_one_line_and_a_re_run_gives_the_same_bytes(
    slow_source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    process = start(slow_source, tmp_path / "out", workers=2)
    wait_for_records(tmp_path / "out", 5, process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert [line.partition(": ")[2][:26] for line in err.splitlines()] == [
        "no classes: its files lie ",
        "run the same command again",
    ]
    assert "run the same command again" in err
    build(slow_source, tmp_path / "out", samples_per_shard=2, workers=1)
    assert contents(tmp_path / "out") == undisturbed


def test_dying_at_any_durable_write_then_a_re_run_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_tree(tmp_path / "source", 5)
    build(source, tmp_path / "undisturbed", samples_per_shard=3, workers=1)
    expected = contents(tmp_path / "undisturbed")
    deaths = 0
    fsync = os.fsync
    while True:
        out = tmp_path / f"out{deaths}"
        child = os.fork()
        if child == 0:
            calls = 0

            def fsync_or_die(descriptor: int, last: int = deaths) -> None:
                nonlocal calls
                if calls == last:
                    os._exit(9)
                calls += 1
                fsync(descriptor)

            monkeypatch.setattr(os, "fsync", fsync_or_die)
            build(source, out, samples_per_shard=3, workers=1)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
        build(source, out, samples_per_shard=3, workers=1)
        assert contents(out) == expected
        deaths += 1
    assert contents(out) == expected
    assert deaths == 2 * (1 + 2 * 3 + 4)  # file and folder, for build.json, two shards and the four at the end


def test_a_kill_while_cleaning_up_leaves_a_finished_build(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", 3)
    build(source, tmp_path / "out", workers=1)
    expected = contents(tmp_path / "out")
    (tmp_path / "out" / ".build").mkdir()
    (tmp_path / "out" / ".build" / "shard-000000.json").write_text("{}")
    assert build(source, tmp_path / "out", workers=1)[1]
    assert contents(tmp_path / "out") == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if mount is None or os.geteuid() != 0 or subprocess.run([mount, *options], check=False).returncode != 0:
        pytest.skip("needs the right to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_clear_error_and_a_re_run_with_room_goes_on(small_disk: Path, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", 60)
    noise = Image.effect_noise((300, 300), 80)
    for number in range(20):
        (source / "ant" / f"noise{number}.jpg").write_bytes(encoded(noise.rotate(number), "JPEG", quality=90))
    out = small_disk / "out"
    options = {"samples_per_shard": 8, "workers": 2}
    size = size_of(sum(len(data) for data in contents(source).values()))
    with pytest.raises(ShardError, match=f"No space left on device; {size} of files are still to be"):
        build(source, out, **options)
    assert not list(out.glob("*.tar"))
    # A size after shrinking is not known beforehand, so this one runs into the end of the disk.
    with pytest.raises(ShardError, match=r"No space left on device; .* run the same command again"):
        shutil.rmtree(out)
        build(source, out, resize=250, **options)
    tars = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    assert not list(out.rglob("*.tmp"))
    assert not (out / "dataset.json").exists()

    build(source, tmp_path / "undisturbed", resize=250, **options)
    expected = contents(tmp_path / "undisturbed")
    assert 0 < len(tars) < len(expected)
    assert tars.items() <= expected.items()
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    build(source, out, resize=250, **options)
    assert contents(out) == expected


def test_a_file_size_limit_is_reported_like_a_full_disk(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", 40)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        with pytest.raises(ShardError, match=os.strerror(errno.EFBIG)):
            build(source, tmp_path / "out", workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert set(contents(tmp_path / "out")) == {".build/build.json", ".build/lock"}


def test_two_builds_at_once_do_not_meet(slow_source: Path, tmp_path: Path) -> None:
    process = start(slow_source, tmp_path / "out", workers=1)
    wait_for_records(tmp_path / "out", 1, process)
    with pytest.raises(ShardError, match="another build is writing to it"):
        build(slow_source, tmp_path / "out", samples_per_shard=2, workers=1)
    process.kill()
    process.communicate()


def test_a_dying_worker_ends_the_run() -> None:
    with pytest.raises(BrokenProcessPool):
        list(run(os._exit, [1, 1, 1], workers=2))


def test_the_first_exception_ends_the_run() -> None:
    with pytest.raises(ZeroDivisionError):
        list(run(divmod_by_zero, [1, 2, 3], workers=2))


def divmod_by_zero(number: int) -> tuple[int, int]:
    return divmod(number, 0)
