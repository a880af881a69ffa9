"""A data set of small videos, for the tests of data."""

from pathlib import Path

import pytest
from making_videos import encoded, film


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 22 videos of 1 to 43 frames and 40 to 72 pixels a side, of several codecs, rates and containers."""
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
    """Those videos in shards of 5."""
    from shards.build import build

    out = tmp_path_factory.mktemp("video-shards") / "train"
    build(videos, out, samples_per_shard=5, workers=1)
    return out


@pytest.fixture(scope="session")
def jpeg_shards(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as JPEGs of their frames."""
    from shards.build import build

    out = tmp_path_factory.mktemp("jpeg-shards") / "train"
    build(videos, out, samples_per_shard=5, workers=1, frames="jpeg")
    return out
