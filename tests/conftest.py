"""Fixtures that every test may use."""

import gc
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from disks import disk_of
from PIL import Image, ImageFilter
from processes import starts_processes
from servers import S3, s3_server

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before anything imports DeepSpeed
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton: kernels run, slowly, on a CPU
os.environ.setdefault("OMP_NUM_THREADS", "1")

CHECKOUT = Path(__file__).resolve().parents[1]


def pytest_runtest_setup() -> None:
    """Keep what is alive from the garbage collector, which goes through all of it whenever DeepSpeed calls it."""
    gc.collect()
    gc.freeze()
    os.environ.pop("RANK", None)  # of a world that a test before has joined: no process that is started is a rank of it


def pytest_unconfigure() -> None:
    gc.unfreeze()  # some libraries look for leaks as the process ends


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow the tests that start processes, by themselves or by a fixture, and begin with files of many such.

    Workers take whole files: one with long tests that is taken last keeps all other workers waiting.
    """
    for item in items:
        if isinstance(item, pytest.Function):
            found = item._fixtureinfo.name2fixturedefs
            fixtures = [fixture.func for name in item.fixturenames for fixture in found.get(name, ())]
            if starts_processes(item.function, *fixtures):
                item.add_marker(pytest.mark.slow)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real images (`clothing/`, `imagenet-samples/`), which the project itself does not ship."""
    folder = Path(os.environ.get("MASKFEAT_TEST_DATA", CHECKOUT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}: set MASKFEAT_TEST_DATA to run this test")
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat folder of 90 smooth random JPEGs of 40 to 120 pixels a side."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(90):
        height, width = rng.integers(40, 121, 2)
        noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        noise.filter(ImageFilter.GaussianBlur(2)).save(folder / f"{index:03d}.jpg", quality=90)
    return folder


@pytest.fixture(scope="session")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the images into shards of 16."""
    from shards.build import build

    out = tmp_path_factory.mktemp("shards") / "train"
    build(images, out, samples_per_shard=16, workers=1)
    return out


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 22 videos of 1 to 43 frames and 40 to 72 pixels a side, of several codecs, rates and containers."""
    from making_videos import encoded, film

    folder = tmp_path_factory.mktemp("videos")
    for number in range(22):
        pixels = film(1 + 2 * number, 40 + 2 * (number % 9), 72 - 4 * (number % 5), seed=number)
        name, options = (
            ("libx264", {"g": 8, "bf": 2, "rate": 25}),
            ("libx264", {"g": 16, "bf": 0, "rate": 10}),
            ("libvpx-vp9", {"g": 10, "rate": 30}),
        )[number % 3]
        container = ("mp4", "matroska", "webm")[number % 3]
        suffix = ("mp4", "mkv", "webm")[number % 3]
        (folder / f"{number:02d}.{suffix}").write_bytes(encoded(pixels, name, container, **options))
    return folder


@pytest.fixture(scope="session")
def video_shards(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the videos into shards of 5."""
    from shards.build import build

    out = tmp_path_factory.mktemp("video-shards") / "train"
    build(videos, out, samples_per_shard=5, workers=1)
    return out


@pytest.fixture(scope="session")
def jpeg_shards(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the videos as JPEGs of their frames."""
    from shards.build import build

    out = tmp_path_factory.mktemp("jpeg-shards") / "train"
    build(videos, out, samples_per_shard=5, workers=1, frames="jpeg")
    return out


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk with 8 MB more than a save leaves free."""
    from pipeline.checkpoints.saver import RESERVE

    with disk_of(RESERVE + 2**23, tmp_path / "disk") as disk:
        yield disk


@pytest.fixture(scope="module")
def remote_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set to keep in a node's cache."""
    from caching import make_set

    return make_set(tmp_path_factory.mktemp("source") / "set")


@pytest.fixture
def node_folder(tmp_path: Path) -> Path:
    """Return the folder of a node's cache, which does not exist yet."""
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """An S3 server with an empty bucket, which all tests share: each uses a prefix of its own."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server
