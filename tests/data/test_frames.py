"""Frames of every kind of file, bit for bit those of PyAV's own decoding of all of it, wherever decoding begins."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from making_odd_videos import odd_videos
from making_videos import all_frames, encoded, film, kinds, real_files
from numpy.typing import NDArray

from pipeline.data.decode import frames as decoding
from pipeline.data.decode.frames import FramesError, frames_at
from shards.media.media import CheckOptions, Rejected
from shards.media.video import VIDEO

ODD = ("a cover first.mp4", "false key frames in the index.avi")
FILES = kinds() | real_files() | {name: data for name, (data, _) in odd_videos().items() if name in ODD}


def bytes_of(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)


def stamps_in_manifest(data: bytes) -> list[int]:
    """Return the manifest's time stamps of the files that are kept."""
    checked = VIDEO.check(data, CheckOptions())
    video = checked.video
    assert video is not None and checked.data == data
    if video.pts is not None:
        return video.pts
    assert video.pts_start is not None and video.pts_step is not None
    return [video.pts_start + number * video.pts_step for number in range(video.frames)]


def chosen(frames: int) -> Iterator[list[int]]:
    """Return each of at most 50 frames alone, and 20 sets of up to 16."""
    rng = np.random.default_rng(frames)
    yield from ([int(frame)] for frame in np.unique(np.linspace(0, frames - 1, 50).astype(int)))
    for _ in range(20):
        yield sorted(rng.choice(frames, min(frames, int(rng.integers(1, 17))), replace=False).tolist())


@pytest.mark.parametrize("name", FILES)
def test_frames_are_those_of_decoding_all(name: str) -> None:
    stamps, pixels = all_frames(FILES[name])
    if name != "no_face.mp4":  # begins without a key frame: not kept
        assert stamps_in_manifest(FILES[name]) == stamps
    for wanted in list(chosen(len(stamps)))[:: 1 if len(FILES[name]) < 50_000 else 8]:
        found = dict(frames_at(bytes_of(FILES[name]), [stamps[frame] for frame in wanted]))
        assert list(found) == [stamps[frame] for frame in wanted]
        for frame in wanted:
            np.testing.assert_array_equal(found[stamps[frame]], pixels[frame])


def test_at_least_fifteen_kinds_of_files() -> None:
    assert len(kinds()) >= 15


def test_decoding_begins_at_the_key_frame_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where that does not give all frames, the start of the file is next."""
    data = bytes_of(FILES["no B frames.mkv"])
    begun, original = [], decoding._decoded

    def noted(encoded: NDArray[np.uint8], stamps: list[int], seeking: bool) -> object:
        begun.append(seeking)
        return original(encoded, stamps, seeking)

    monkeypatch.setattr(decoding, "_decoded", noted)
    stamps, _ = all_frames(FILES["no B frames.mkv"])
    dict(frames_at(data, stamps[-3:]))
    assert begun == [True]
    begun.clear()
    stamps, _ = all_frames(FILES["open GOP.mp4"])
    for frame in range(12, 24):
        dict(frames_at(bytes_of(FILES["open GOP.mp4"]), stamps[frame : frame + 1]))
    assert False in begun


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda data: data[: len(data) // 2], "moov atom not found|Invalid data"),
        (lambda data: b"", "Invalid data|End of file"),
        (lambda data: encoded(film(20)), "5 of 5 frames are missing"),
    ],
)
def test_what_cannot_be_had_is_an_error(damage: Callable[[bytes], bytes], why: str) -> None:
    good = FILES["B frames.mp4"]
    stamps = [stamp + 1 for stamp in range(20_000, 20_050, 10)] if "are missing" in why else all_frames(good)[0][20:25]
    with pytest.raises(FramesError, match=why):
        dict(frames_at(bytes_of(damage(good)), stamps))


def test_a_file_that_names_others_opens_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(FILES["B frames.mp4"])
    listing = b"ffconcat version 1.0\nfile clip.mp4\n"
    stamps, _ = all_frames(listing)  # PyAV itself goes there
    with pytest.raises(FramesError, match="Invalid"):
        dict(frames_at(bytes_of(listing), stamps[:3]))
    with pytest.raises(Rejected, match="not a video"):
        VIDEO.check(listing, CheckOptions())
