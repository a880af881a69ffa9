"""The frames of a clip: SlowFast's own numbers, exact strides and rates, segments, and too short videos."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.data import clips
from pipeline.data.augment import clip_keys, sample_keys
from pipeline.data.clips import placed_clips, random_clips
from pipeline.data.settings import Clip
from pipeline.random import derive, uniform

# frames, rate, frames of the clip, stride, place, places: printed by `get_start_end_idx(..., use_offset=True)` and
# `temporal_sampling` of facebookresearch/SlowFast at 287ec00
PLACED = {
    (300, 30, 16, 4, 0, 1): "118 122 126 130 134 139 143 147 151 155 160 164 168 172 176 181",
    (300, 30, 16, 4, 3, 10): "78 82 86 90 94 99 103 107 111 115 120 124 128 132 136 141",
    (300, 30, 16, 4, 9, 10): "234 238 242 246 250 255 259 263 267 271 276 280 284 288 292 297",
    (250, 25, 16, 4, 2, 5): "98 101 104 108 111 115 118 122 125 129 132 136 139 143 146 150",
    (299, 30000 / 1001, 16, 4, 6, 10): "156 160 164 168 172 176 181 185 189 193 197 202 206 210 214 218",
    (90, 10, 16, 4, 1, 3): "34 35 36 38 39 40 42 43 44 46 47 48 50 51 52 54",
    (40, 30, 16, 4, 0, 1): "0 4 8 12 16 21 25 29 33 37 39 39 39 39 39 39",
    (5, 24, 8, 8, 1, 2): "0 4 4 4 4 4 4 4",
    (1, 25, 4, 4, 0, 1): "0 0 0 0",
    (100, 23.976, 16, 2, 2, 3): "74 75 77 78 80 82 83 85 87 88 90 92 93 95 96 98",
}
# draw, frames, rate: 16 frames of stride 4, printed by the same with `random.uniform(a, b)` as a + (b - a) * draw
DRAWN = {
    (0.25, 300, 30): "59 63 67 71 75 80 84 88 92 96 101 105 109 113 117 122",
    (0.7265625, 250, 25): "142 146 149 153 156 160 163 167 170 174 177 181 184 188 191 195",
    (0.9990234375, 120, 29.97): "56 60 64 68 72 76 81 85 89 93 97 102 106 110 114 118",
    (0.5, 80, 60): "0 8 16 25 33 42 50 59 67 76 79 79 79 79 79 79",
}


def clip(frames: int, sampling: str = "nominal", stride: float = 4, fps: float | None = None) -> Clip:
    return Clip(frames, sampling, stride, fps)  # type: ignore[arg-type]


def videos(*frames: int, rate: float = 30) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    return np.array(frames, np.int32), np.full(len(frames), rate, np.float64)


@pytest.fixture
def keys() -> NDArray[np.int64]:
    ids = np.arange(2000, dtype=np.int64)
    return sample_keys(5, np.zeros_like(ids), ids)


@pytest.mark.parametrize("case", PLACED, ids=str)
def test_places_are_those_of_slowfast(case: tuple[int, float, int, float, int, int]) -> None:
    frames, rate, count, stride, place, places = case
    found = placed_clips(*videos(frames, rate=rate), clip(count, stride=stride), place, places)
    assert found.dtype == np.int32
    assert " ".join(map(str, found[0])) == PLACED[case]


@pytest.mark.parametrize("case", DRAWN, ids=str)
def test_random_clips_are_those_of_slowfast(case: tuple[float, int, float], monkeypatch: pytest.MonkeyPatch) -> None:
    draw, frames, rate = case
    monkeypatch.setattr(clips, "uniform", lambda keys: np.full(keys.shape, draw))
    found = random_clips(np.zeros(1, np.int64), *videos(frames, rate=rate), clip(16))
    assert " ".join(map(str, found[0])) == DRAWN[case]


def test_a_clip_is_a_function_of_its_own_key(keys: NDArray[np.int64]) -> None:
    """Compare clips in a batch, alone, and among others of other lengths and rates."""
    frames, rates = np.arange(1, 2001, dtype=np.int32), np.linspace(5, 60, 2000)
    for settings in (clip(8), clip(8, "stride", 3), clip(8, "fps", fps=4), clip(8, "segments")):
        together = random_clips(keys, frames, rates, settings)
        assert together.shape == (2000, 8) and (np.diff(together) >= 0).all()
        assert (together >= 0).all() and (together < frames[:, None]).all()
        for place in (0, 17, 1999):
            here = slice(place, place + 1)
            np.testing.assert_array_equal(
                random_clips(keys[here], frames[here], rates[here], settings)[0], together[place]
            )


def test_the_start_is_drawn_evenly_from_the_room(keys: NDArray[np.int64]) -> None:
    draws = uniform(clip_keys(keys))
    frames, rates = videos(*[300] * 2000)
    room = 300 - 64
    np.testing.assert_array_equal(random_clips(keys, frames, rates, clip(16))[:, 0], np.floor(draws * room))
    starts = random_clips(keys, frames, rates, clip(16, "stride", 4))[:, 0]
    assert (starts.min(), starts.max()) == (0, 300 - 61)  # the last one ends with the video
    assert np.abs(np.histogram(starts, 8, (0, 240))[0] / 2000 - 1 / 8).max() < 0.03


@pytest.mark.parametrize("stride", [1, 2, 7])
def test_exact_strides(keys: NDArray[np.int64], stride: int) -> None:
    frames, rates = videos(*[200] * 2000, rate=23.976)
    found = random_clips(keys, frames, rates, clip(16, "stride", stride))
    assert (np.diff(found) == stride).all()


def test_a_fixed_rate(keys: NDArray[np.int64]) -> None:
    """4 frames a second: 7.5 apart of 30 a second, 2.5 of 10; the clip takes 3.75 seconds of any video."""
    for rate, gaps in ((30, {7, 8}), (10, {2, 3}), (4, {1})):
        frames, rates = videos(*[20 * rate] * 2000, rate=rate)
        found = random_clips(keys, frames, rates, clip(16, "fps", fps=4))
        assert set(np.diff(found).flat) == gaps
        assert set((found[:, -1] - found[:, 0]).tolist()) == {int(3.75 * rate)}


def test_segments() -> None:
    """SlowFast's for Something-Something: borders at round((frames - 1) / T * i), both of which belong to a segment."""
    frames, rates = videos(17, 100, 3)
    settings = clip(4, "segments")
    keys = derive(np.arange(3000, dtype=np.int64), 1)
    draws = np.stack([random_clips(np.repeat(key, 3), frames, rates, settings) for key in keys])
    expected = [
        [[0, 4], [4, 8], [8, 12], [12, 16]],
        [[0, 25], [25, 50], [50, 74], [74, 99]],
        [[0, 0], [0, 1], [1, 2], [2, 2]],
    ]
    np.testing.assert_array_equal(np.stack([draws.min(0), draws.max(0)], axis=-1), expected)
    assert np.abs(np.bincount(draws[:, 0, 1], minlength=9)[4:] / 3000 - 1 / 5).max() < 0.03
    middle = placed_clips(frames, rates, settings)
    np.testing.assert_array_equal(middle, [[2, 6, 10, 14], [12, 37, 62, 86], [0, 0, 1, 2]])
    thirds = np.stack([placed_clips(frames, rates, settings, place, 2) for place in range(2)])
    np.testing.assert_array_equal(thirds[:, 1, 0], [8, 16])


def test_places_of_a_video_that_is_too_short_are_one() -> None:
    frames, rates = videos(10, 61, 64)
    for place in range(3):
        found = placed_clips(frames, rates, clip(16), place, 3)
        assert (found[:, 0] == 0).all()
        assert found[:, -1].tolist() == [9, 60, 63]


def test_one_frame_is_the_middle_or_any() -> None:
    frames, rates = videos(101)
    assert placed_clips(frames, rates, clip(1, "stride", 1)).tolist() == [[50]]
    keys = derive(np.arange(3000, dtype=np.int64), 2)
    drawn = random_clips(keys, np.repeat(frames, 3000), np.repeat(rates, 3000), clip(1, "stride", 1))
    assert set(drawn[:, 0].tolist()) == set(range(101))
