"""The treatment of sound, odd and damaged videos."""

import base64
import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from making_images import make_tar
from making_odd_videos import odd_videos, remuxed, rotated, with_sound
from making_videos import all_frames, encoded, film, real_files
from PIL import Image

from shards.build import build
from shards.index import index_tars
from shards.manifest import Manifest
from shards.media import video_stream
from shards.media.containers import missing_bytes
from shards.media.media import Checked, CheckOptions, Rejected
from shards.media.video import KEY_FRAME_EVERY, VIDEO
from shards.media.video_encoding import encode
from shards.output import overview
from shards.preview import write_preview
from shards.tables.rejects import load_rejects
from shards.verify import verify

ODD = odd_videos()


def check(data: bytes, **options: int) -> Checked:
    return VIDEO.check(data, CheckOptions(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ODD)
def test_each_file_gets_what_is_right_for_it(name: str) -> None:
    data, outcome = ODD[name]
    if outcome not in ("kept", "encoded"):
        with pytest.raises(Rejected) as why:
            check(data)
        assert why.value.reason == outcome
        return
    found = check(data)
    assert (found.data == data) == (outcome == "kept")
    assert found.video is not None
    stamps, frames = all_frames(found.data)
    assert (found.video.frames, found.height, found.width) == frames.shape[:3]
    step = found.video.pts_step
    start = found.video.pts_start or 0
    assert stamps == (found.video.pts or [start + step * number for number in range(len(stamps)) if step])
    assert VIDEO.probe(found.data) == found


@pytest.mark.parametrize("name", [name for name, (data, _) in ODD.items() if data])
def test_a_data_set_of_the_file_beside_an_image_is_built_or_lists_it(name: str, tmp_path: Path) -> None:
    data, outcome = ODD[name]
    (tmp_path / "source" / "ant").mkdir(parents=True)
    (tmp_path / "source" / "ant" / "sound.mp4").write_bytes(encoded(film(3)))
    (tmp_path / "source" / "ant" / name).write_bytes(data)
    dataset, _ = build(tmp_path / "source", tmp_path / "out", workers=1)
    rejects = [(path, reason) for path, reason, _ in load_rejects(tmp_path / "out")]
    assert rejects == ([] if outcome in ("kept", "encoded") else [(f"ant/{name}", outcome)])
    assert dataset.samples == 2 - len(rejects)
    assert verify(tmp_path / "out") == []


@pytest.mark.parametrize(("name", "data"), real_files().items())
def test_real_files_are_kept(name: str, data: bytes) -> None:
    found = check(data)
    assert found.data == data and VIDEO.probe(data) == found


@pytest.mark.parametrize(
    "turn",
    [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)],
)
@pytest.mark.parametrize("side", [None, 32])
def test_a_rotated_or_mirrored_video_is_stored_as_it_is_shown(turn: tuple[int, ...], side: int | None) -> None:
    data = rotated(encoded(film(6, 48, 64), crf=4), turn)
    found = check(data, resize=side)  # type: ignore[arg-type]
    coded, frames = all_frames(data)[1], all_frames(found.data)[1]
    a, b, c, d = turn
    y, x = np.mgrid[:48, :64]
    across, down = a * x + c * y, b * x + d * y
    expected = np.zeros_like(coded if a else coded.swapaxes(1, 2))
    expected[:, down - down.min(), across - across.min()] = coded
    assert min(frames.shape[1:3]) == (side or 48)
    assert (frames.shape[1] > frames.shape[2]) == (expected.shape[1] > expected.shape[2])
    if side is None:
        assert np.abs(frames.astype(float) - expected).mean() < 6


@pytest.mark.parametrize(
    ("codec", "container", "pix_fmt"),
    [
        ("mjpeg", "avi", "yuvj420p"),
        ("mjpeg", "avi", "yuvj422p"),
        ("libx264", "mp4", "yuv444p"),
        ("libx265", "mp4", "yuv420p10le"),
        ("rawvideo", "avi", "bgr24"),
        ("libvpx-vp9", "webm", "yuv420p"),
    ],
)
def test_what_is_encoded_anew_has_the_same_frames_and_colours(codec: str, container: str, pix_fmt: str) -> None:
    data = encoded(film(20, grey=True), codec, container, pix_fmt=pix_fmt)
    frames, found = all_frames(data)[1], check(data, resize=10_000)
    encoded_anew = all_frames(found.data)[1]
    differences = encoded_anew.astype(float) - frames
    assert np.abs(differences).mean((1, 2, 3)).max() < 9
    assert encoded_anew.std() == pytest.approx(frames.std(), rel=0.03)  # a range taken wrongly changes it by a seventh
    wrong = np.abs(encoded_anew[1:].astype(float) - frames[:-1]).mean()
    assert wrong > 1.3 * np.abs(differences).mean()  # so no frame has moved


def test_resized_videos_are_small_fast_to_seek_in_and_of_a_constant_rate() -> None:
    uneven = np.cumsum([20, 40, 40, 90] * 12).tolist()
    data = encoded(film(48, 96, 130), stamps=uneven, g=250, bf=2)
    found = check(data, resize=48)
    video = found.video
    assert video is not None
    assert (found.suffix, found.height, found.width) == ("mp4", 48, 64)
    assert (video.codec, video.pix_fmt, video.pts, video.frames) == ("h264", "yuv420p", None, 48)
    assert video.key_frames == list(range(0, 48, KEY_FRAME_EVERY))
    assert video.duration == pytest.approx(48 * (uneven[-1] - uneven[0]) / 47 / 1000, rel=1e-3)
    with av.open(io.BytesIO(found.data)) as container:
        assert not container.streams.audio and not container.streams.video[0].codec_context.has_b_frames
    assert check(found.data, resize=48).data is found.data  # which are small already


@pytest.mark.parametrize(("height", "width"), [(6, 6), (16, 48), (48, 64), (64, 48)])
def test_a_video_is_encoded_to_the_same_bytes_whatever_memory_had_before(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    data, rate = encoded(film(40, height, width)), Fraction(25)
    expected, rubbish = encode(data, None, rate), []
    for _ in range(100):
        rubbish = rubbish[-20:] + [
            rng.integers(256, size=size, dtype=np.uint8) for size in rng.integers(200_000, size=5)
        ]
        assert encode(data, None, rate) == expected


def test_resizing_drops_sound_and_never_enlarges() -> None:
    small = encoded(film(12), g=8, bf=0)
    assert check(small, resize=100).data is small
    found = check(with_sound(film(12)), resize=100)
    with av.open(io.BytesIO(found.data)) as container:
        assert not container.streams.audio
    assert (found.height, found.width) == (48, 64)


@pytest.mark.parametrize("name", ["two streams.webm", "false key frames.mp4"])
def test_what_readers_would_show_differently_is_stored_as_its_first_stream_is(name: str) -> None:
    found = check(ODD[name][0])
    with av.open(io.BytesIO(ODD[name][0])) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert np.abs(all_frames(found.data)[1].astype(float) - frames).mean() < 9


@pytest.mark.parametrize("seconds", [2, 1500, 3600])
def test_the_rate_of_a_slow_video_is_kept(seconds: int) -> None:
    data = encoded(film(20), stamps=[1000 * seconds * number for number in range(20)])
    for found in (check(data), check(data, resize=24)):
        video = found.video
        assert video is not None and (video.frames, video.fps_num, video.fps_den) == (20, 1, seconds)
        assert all_frames(VIDEO.moving(found.data, 24))[0]


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(film(12))
    assert check(data, max_pixels=48 * 64).data is data
    with pytest.raises(Rejected, match="too many pixels"):
        check(data, max_pixels=48 * 64 - 1)
    monkeypatch.setattr(video_stream, "_MOST_FRAMES", 11)
    with pytest.raises(Rejected, match="too many frames"):
        check(data)


def test_a_rate_that_is_none_is_refused() -> None:
    slow = encoded(film(2), stamps=[0, 10**9], container="matroska")
    with pytest.raises(Rejected) as caught:
        VIDEO.check(slow, CheckOptions())
    assert (caught.value.reason, caught.value.detail) == (
        "bad time stamps",
        "2 frames in 2e+06 seconds are not a valid frame rate",
    )


def test_a_playlist_opens_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg itself would read the video that it names, or ask a server for it."""
    (tmp_path / "real.mp4").write_bytes(encoded(film(3)))
    monkeypatch.chdir(tmp_path)
    for text in (f"ffconcat version 1.0\nfile {tmp_path}/real.mp4\n", f"#EXTM3U\n#EXTINF:1,\n{tmp_path}/real.mp4\n"):
        with pytest.raises(Rejected, match="not a video"):
            check(text.encode())


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "avi", "webm"])
def test_every_cut_of_a_file_is_told(container: str) -> None:
    codec = "libvpx-vp9" if container == "webm" else "mpeg4"
    data = encoded(film(5), codec, container)
    assert missing_bytes(data) == missing_bytes(data + b"rest") == 0
    for length in range(200, len(data) - 1):
        with pytest.raises(Rejected):
            check(data[:length])


def test_info_and_preview_tell_of_videos(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.mp4").write_bytes(encoded(film(50)))
    (tmp_path / "source" / "b.webm").write_bytes(encoded(film(20), "libvpx-vp9", "webm", rate=10))
    dataset, _ = build(tmp_path / "source", tmp_path / "out", workers=1)
    rows = dict(overview(dataset, Manifest.load(tmp_path / "out")))
    assert (rows["videos"], rows["  hours"], rows["  coded as"]) == ("2", "0.00", "h264 yuv420p, vp9 yuv420p")
    assert rows["  seconds"] == "2.00 min, 2.00 median, 2.00 max"
    assert rows["  frames/s"] == "10.00 min, 17.50 median, 25.00 max"
    assert rows["mean video"] == f"{dataset.bytes / 2:,.0f} bytes"
    assert write_preview(tmp_path / "out", tmp_path / "page.html") == 2
    page = (tmp_path / "page.html").read_text()
    assert "50 frames, 25 a second" in page and "<h2>Videos" in page
    assert "<dd>20 – 50</dd><dt>frames per video</dt>" in page  # noqa: RUF001
    films = [base64.b64decode(part.partition("'")[0]) for part in page.split("data:video/mp4;base64,")[1:]]
    assert sorted(len(all_frames(film)[0]) for film in films) == [20, 50]
    sheets = [base64.b64decode(part.partition("'")[0]) for part in page.split("data:image/jpeg;base64,")[1:]]
    for sheet in sheets:
        assert Image.open(io.BytesIO(sheet)).size == (3 * 52 + 4, 2 * 39 + 2)  # with gaps of 2 pixels


def test_tars_of_videos_made_elsewhere(tmp_path: Path) -> None:
    """As video2dataset writes them: KEY.mp4, KEY.json and KEY.txt."""
    plain = encoded(film(9))
    files = {"0000": plain, "0001": rotated(plain), "0002": plain[:-99], "0003": remuxed(plain, "matroska")}
    members = {}
    for key, data in files.items():
        suffix = "mkv" if key == "0003" else "mp4"
        members |= {f"{key}.json": b'{"label": "run"}', f"{key}.{suffix}": data, f"{key}.txt": b"a caption"}
    make_tar(tmp_path / "00000.tar", members)
    index_tars([str(tmp_path / "00000.tar")], tmp_path / "out", workers=1)
    manifest = Manifest.load(tmp_path / "out")
    assert [manifest.key(sample) for sample in range(len(manifest))] == ["0000", "0003"]
    assert manifest.video is not None
    assert manifest.video.frames.tolist() == [9, 9] and manifest.classes == ["run"]
    rejects = {path[-4:]: (reason, detail) for path, reason, detail in load_rejects(tmp_path / "out")}
    assert {key: reason for key, (reason, _) in rejects.items()} == {"0001": "needs rewriting", "0002": "corrupt"}
    assert "rotation" in rejects["0001"][1] and "build" in rejects["0001"][1]
    assert verify(tmp_path / "out") == []
