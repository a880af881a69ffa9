"""Videos as JPEGs of their frames: the same frames at the same times, each a file of its own in an ordinary video."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
from making_images import contents, make_tar
from making_odd_videos import odd_videos, rotated
from making_videos import all_frames, encoded, film, kinds
from numpy.typing import NDArray
from PIL import Image
from resealing import put, rewrite

from shards.build import build
from shards.cli import main
from shards.files import ShardError
from shards.index import index_tars
from shards.manifest import Dataset, Manifest
from shards.media import video, video_jpegs
from shards.media.media import Checked, CheckOptions, Rejected, VideoStream
from shards.media.video import VIDEO
from shards.output import overview
from shards.preview import write_preview
from shards.tables.columns import JPEG_COLUMNS
from shards.verify import verify

KINDS = kinds() | {
    # Whose unit of time, 1001/30000 s, MP4 cannot have
    "NTSC.avi": encoded(film(20), "mpeg4", "avi", rate=Fraction(30_000, 1001)),  # type: ignore[arg-type]
}
CONVERTED = {"10-bit", "12-bit", "not 4:2:0"}  # as with --resize


def check(data: bytes, resize: int | None = None, stride: int = 1) -> Checked:
    return VIDEO.check(data, CheckOptions(resize=resize, frames="jpeg", frame_stride=stride))


def described(found: Checked) -> VideoStream:
    assert found.video is not None
    return found.video


def jpegs(found: Checked) -> list[bytes]:
    """Cut the JPEGs out of a file by what is said of it."""
    video = described(found)
    assert video.jpeg_offset is not None and video.jpeg_sizes is not None
    ends = video.jpeg_offset + np.cumsum([0, *video.jpeg_sizes])
    return [found.data[begin:end] for begin, end in pairwise(ends.tolist())]


def shown(found: Checked) -> NDArray[np.uint8]:
    """Decode each of them by Pillow: uint8 (frames, height, width, 3)."""
    return np.stack([np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in jpegs(found)])


def apart(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the mean difference of luminance of each of two times n frames, (n,): of 4:2:0, colours are coarser."""
    return np.asarray(np.abs((first.astype(float) - second) @ [0.299, 0.587, 0.114]).mean((1, 2)))


def seconds(video: VideoStream) -> list[Fraction]:
    """Return when each frame is shown, after the first."""
    base, stamps = Fraction(video.time_base_num, video.time_base_den), video.stamps()
    return [(stamp - stamps[0]) * base for stamp in stamps]


@pytest.mark.parametrize("name", KINDS)
def test_all_frames_are_there_at_their_times(name: str) -> None:
    plain, found = VIDEO.check(KINDS[name], CheckOptions()), check(KINDS[name])
    before, after = described(plain), described(found)
    for fact in ("frames", "fps_num", "fps_den", "duration"):
        assert getattr(after, fact) == getattr(before, fact)
    assert seconds(after) == seconds(before)
    assert (found.suffix, found.height, found.width) == ("mp4", plain.height, plain.width)
    assert (after.codec, after.pix_fmt) == ("mjpeg", "yuvj420p")
    frames = all_frames(KINDS[name])[1]
    assert apart(shown(found), frames).max() < 1.5
    assert len(frames) == 1 or apart(shown(found)[1:], frames[:-1]).min() > 9  # so no frame has moved
    stamps, as_a_video = all_frames(found.data)
    assert stamps == after.stamps()
    assert apart(as_a_video, shown(found)).max() < 1
    assert VIDEO.probe(found.data) == found


def test_a_jpeg_is_its_frame_as_libjpeg_encodes_it() -> None:
    data = KINDS["B frames.mp4"]
    expected = [simplejpeg.encode_jpeg(frame, 90, "RGB", "420") for frame in all_frames(data)[1]]
    assert jpegs(check(data)) == expected


@pytest.mark.parametrize("name", ["B frames.mp4", "uneven.mkv", "edit list.mp4", "one frame.mp4"])
@pytest.mark.parametrize("stride", [2, 7, 100])
def test_with_a_stride_every_nth_frame_is_kept_with_its_time(name: str, stride: int) -> None:
    whole, found = check(KINDS[name]), check(KINDS[name], stride=stride)
    assert jpegs(found) == jpegs(whole)[::stride]
    kept = seconds(described(whole))[::stride]
    assert seconds(described(found)) == kept
    rate = described(whole).frames / described(whole).duration / stride
    if len(kept) > 1:
        rate = float((len(kept) - 1) / kept[-1])
    assert described(found).fps_num / described(found).fps_den == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize(("name", "side"), [("B frames.mp4", 32), ("odd size.mkv", 30), ("odd size.webm", 100)])
def test_resized_frames_have_the_sides_of_other_resized_videos(name: str, side: int) -> None:
    plain, found = VIDEO.check(KINDS[name], CheckOptions(resize=side)), check(KINDS[name], side)
    assert (found.height, found.width) == (plain.height, plain.width)
    frames = all_frames(plain.data)[1]
    assert apart(shown(found), frames).max() < 6 and apart(shown(found)[1:], frames[:-1]).min() > 9


@pytest.mark.parametrize("side", [None, 32])
def test_rotated_videos_become_upright(side: int | None) -> None:
    data = rotated(encoded(film(6), crf=4), (0, 1, -1, 0))
    first = shown(check(data, side))[:1]
    expected = Image.fromarray(np.rot90(all_frames(data)[1][0], 3))
    assert first.shape == ((1, 42, 32, 3) if side else (1, 64, 48, 3))
    assert apart(first, np.asarray(expected.resize(first.shape[2:0:-1]))[None]).max() < 5


@pytest.mark.parametrize(("name", "data", "outcome"), [(name, *odd) for name, odd in odd_videos().items()])
def test_odd_files_are_rejected_by_the_reasons_of_other_builds(name: str, data: bytes, outcome: str) -> None:
    if outcome in CONVERTED | {"kept", "encoded"}:
        assert VIDEO.probe(check(data).data).video == check(data).video
        return
    with pytest.raises(Rejected) as why:
        check(data)
    assert why.value.reason == outcome


def test_a_video_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(video, "examine", lambda *of, examine=video.examine: calls.append(of) or examine(*of))
    check(KINDS["B frames.mp4"], 32)
    assert len(calls) == 1


def test_too_many_bytes_and_times_that_mp4_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    gap = encoded(film(40), container="matroska", stamps=[*range(0, 3900, 100), 60_000_000 * 40])
    assert VIDEO.check(gap, CheckOptions()).data is gap
    with pytest.raises(Rejected, match="MP4 cannot store"):
        check(gap)
    monkeypatch.setattr(video_jpegs, "MAX_BYTES", 10_000)
    with pytest.raises(Rejected, match="too many bytes") as why:
        check(KINDS["B frames.mp4"])
    assert "--frame-stride" in why.value.detail
    assert described(check(KINDS["B frames.mp4"], stride=20)).frames == 3


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for label, name in enumerate(["B frames.mp4", "uneven.mkv", "VP9.webm", "odd size.mkv", "one frame.mp4"]):
        (folder / f"class {label % 2}").mkdir(exist_ok=True)
        (folder / f"class {label % 2}" / name).write_bytes(KINDS[name])
    return folder


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "set"
    build(source, out, samples_per_shard=2, workers=1, frames="jpeg")
    return out


def test_a_build_is_the_same_with_other_workers_and_after_an_interruption(
    source: Path, built: Path, tmp_path: Path
) -> None:
    build(source, tmp_path / "two", samples_per_shard=2, workers=2, frames="jpeg")
    assert contents(tmp_path / "two") == contents(built)

    def stop(done: int, total: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(source, tmp_path / "stopped", samples_per_shard=2, workers=1, frames="jpeg", progress=stop)
    written = (tmp_path / "stopped" / "shard-000000.tar").stat().st_mtime_ns
    build(source, tmp_path / "stopped", samples_per_shard=2, workers=1, frames="jpeg")
    assert (tmp_path / "stopped" / "shard-000000.tar").stat().st_mtime_ns == written
    assert contents(tmp_path / "stopped") == contents(built)
    with pytest.raises(ShardError, match="other files or options"):
        build(source, tmp_path / "two", samples_per_shard=2, workers=1, frames="jpeg", frame_stride=2)


def test_the_commands_know_of_it(built: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(built)
    assert verify(built) == [] and manifest.video is not None and manifest.video.jpegs is not None
    rows = dict(overview(Dataset.load(built), manifest))
    assert rows["  coded as"] == "mjpeg yuvj420p" and rows["  mean frame"].endswith(" bytes of JPEG")
    assert write_preview(built, tmp_path / "page.html") == 5
    assert (tmp_path / "page.html").read_text().count("<video ") == 5


def test_places_in_the_manifest_are_those_of_the_jpegs(built: Path) -> None:
    manifest = Manifest.load(built)
    assert manifest.video is not None and manifest.video.jpegs is not None
    for sample, row in enumerate(pq.read_table(built / "manifest.parquet").to_pylist()):
        file = (built / manifest.shard_names[row["shard"]]).read_bytes()[row["offset"] : row["offset"] + row["size"]]
        frames = np.arange(row["frames"], dtype=np.int32)[::-2]
        places = manifest.video.jpegs.places(sample, frames)
        assert [crc32c for _, _, crc32c in places] == row["jpeg_crc32c"][::-2]
        for offset, size, _ in places:
            with Image.open(io.BytesIO(file[offset : offset + size])) as image:
                assert image.size == (row["width"], row["height"])


@pytest.mark.parametrize("column", sorted(JPEG_COLUMNS))
def test_verify_compares_the_places(built: Path, column: str, tmp_path: Path) -> None:
    out = shutil.copytree(built, tmp_path / "set")
    rows = pq.read_table(out / "manifest.parquet").to_pylist()
    place = max(range(5), key=lambda row: rows[row]["frames"])
    wrong = rows[place][column] - 1 if column == "jpeg_offset" else rows[place][column][::-1]
    rewrite(out, put(column, place, wrong))
    (problem,) = verify(out)
    assert f"its {column} is {wrong} in the manifest" in problem.what


@pytest.mark.parametrize(
    ("column", "wrong"),
    [
        ("jpeg_offset", lambda value: 10**6),
        ("jpeg_sizes", lambda value: [-5, *value[1:]]),
        ("jpeg_sizes", lambda value: [0, *value[1:]]),
        ("jpeg_sizes", lambda value: value[1:]),
        ("jpeg_sizes", lambda value: None),
        ("jpeg_crc32c", lambda value: [*value, 7]),
    ],
)
def test_places_that_cannot_be_are_refused(
    built: Path, column: str, wrong: Callable[[Any], Any], tmp_path: Path
) -> None:
    out = shutil.copytree(built, tmp_path / "set")
    rows = pq.read_table(out / "manifest.parquet").to_pylist()
    rewrite(out, put(column, 3, wrong(rows[3][column])))
    with pytest.raises(ShardError, match="sample 3: the JPEGs of its frames are not inside its file"):
        Manifest.load(out)


def test_the_command_builds_of_images_and_videos_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shell(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["maskfeat-shards", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return capsys.readouterr().out

    (tmp_path / "source").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "source" / "a.png")
    for name in ("B frames.mp4", "VP8.webm"):
        (tmp_path / "source" / name).write_bytes(KINDS[name])
    shell("build", tmp_path / "source", tmp_path / "set", "--workers", 1, "--frames", "jpeg", "--frame-stride", 10)
    assert "no problems found" in shell("verify", tmp_path / "set")
    assert "5 min, 5 median, 5 max" in shell("info", tmp_path / "set")
    manifest = Manifest.load(tmp_path / "set")
    assert manifest.media == {"image", "video"} and manifest.video is not None and manifest.video.jpegs is not None
    assert sorted(len(manifest.video.jpegs.sizes(sample)) for sample in range(3)) == [0, 5, 5]


def test_other_data_sets_say_nothing_of_jpegs(source: Path, built: Path, tmp_path: Path) -> None:
    """So that they have the bytes, and are known by the input, that they had before there were any."""
    build(source, tmp_path / "plain", workers=1)
    assert not JPEG_COLUMNS & set(pq.read_schema(tmp_path / "plain" / "manifest.parquet").names)
    options = json.loads((tmp_path / "plain" / "dataset.json").read_text())["options"]
    assert list(options) == ["samples_per_shard", "resize", "max_pixels", "seed", "check"]
    manifest = Manifest.load(tmp_path / "plain")
    assert manifest.video is not None and manifest.video.jpegs is None
    options = json.loads((built / "dataset.json").read_text())["options"]
    assert (options["frames"], options["frame_stride"]) == ("jpeg", 1)
    with pytest.raises(ShardError, match="--frame-stride 2: belongs to --frames jpeg"):
        build(source, tmp_path / "no", frame_stride=2)


def test_such_files_are_videos_like_others_elsewhere(built: Path, tmp_path: Path) -> None:
    """To `index`, and to a build that keeps their bytes: neither lists the places, nor does `verify` ask for them."""
    found = check(KINDS["B frames.mp4"])
    make_tar(tmp_path / "a.tar", {"0.mp4": found.data})
    index_tars([str(tmp_path / "a.tar")], tmp_path / "index", workers=1)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.mp4").write_bytes(found.data)
    build(tmp_path / "source", tmp_path / "kept", workers=1)
    for root in (tmp_path / "index", tmp_path / "kept"):
        manifest = Manifest.load(root)
        assert manifest.video is not None and manifest.video.jpegs is None
        assert manifest.size.tolist() == [len(found.data)] and manifest.video.frames.tolist() == [50]
        assert verify(root) == []
