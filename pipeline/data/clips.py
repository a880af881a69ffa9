"""Choose the frames of a clip, as pure functions of the sample's key, its number of frames and its rate.

A clip of T frames spans this many frames of its video; its own frames are spread evenly over the span, from the first
frame to the last, and rounded down:

    nominal   T * stride * rate / 30                 SlowFast: `stride` counts frames of a video with 30 per second
    stride    (T - 1) * stride + 1                   VideoMAE: every `stride`-th frame, whatever the rate
    fps       (T - 1) * rate / fps + 1               V-JEPA 2: `fps` frames per second
    segments  all of the video: one frame of each of T equal parts, which share their borders (SlowFast's for SSv2)

With `nominal`, the step is slightly more than `stride`: 16 frames at stride 4 and 30 frames per second are 0, 4, 8, 12,
16, 21, ..., 63 after the first. Where a video is shorter than the span, the clip begins with it and repeats its last
frame.

Source: `get_start_end_idx`, `temporal_sampling` and `Ssv2.get_seq_frames` of SlowFast.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.data.augment import Int64s, clip_keys
from pipeline.data.settings import Clip
from pipeline.random import derive, uniform

Frames = NDArray[np.int32]
Rates = NDArray[np.float64]

_NOMINAL = 30  # frames per second


def random_clips(keys: Int64s, frames: Frames, rates: Rates, clip: Clip) -> Frames:
    """Draw the frames of a clip of each video; int32 (n, T), ascending numbers from 0.

    Args:
        keys: the samples' keys, (n,).
        frames: the number of frames in each video, (n,).
        rates: frames per second, (n,).
        clip: the settings of a clip.
    """
    keys = clip_keys(keys)
    if clip.sampling == "segments":
        begin, end = _segments(frames, clip.frames)
        draws = uniform(derive(keys[:, None], np.arange(clip.frames, dtype=np.int64)))
        return np.asarray(begin + draws * (end - begin + 1), np.int32)
    span = _span(rates, clip)
    room, draws = _room(frames, span), uniform(keys)
    # SlowFast's clips may begin between two frames; all others begin with a frame, each equally likely
    start = draws * room if clip.sampling == "nominal" else np.floor(draws * (np.floor(room) + 1))
    return _spread(start, span, frames, clip.frames)


def placed_clips(frames: Frames, rates: Rates, clip: Clip, place: int = 0, places: int = 1) -> Frames:
    """Return the frames of each video's clip at one of evenly spaced places; int32 (n, T).

    A single place is the middle. Of several places, the first is the beginning, and the last is the end, up to
    rounding. With segments, the frames divide them evenly.

    Args:
        frames: the number of frames in each video, (n,).
        rates: frames per second, (n,).
        clip: the settings of a clip.
        place: 0 to `places` - 1.
        places: the number of places.
    """
    if clip.sampling == "segments":
        begin, end = _segments(frames, clip.frames)
        return (begin + (end - begin) * (place + 1) // (places + 1)).astype(np.int32)
    span = _span(rates, clip)
    room = _room(frames, span)
    start = np.floor(room / 2) if places == 1 else place * np.floor(room / (places - 1))
    return _spread(start, span, frames, clip.frames)


def _span(rates: Rates, clip: Clip) -> Rates:
    """Return how many frames of its video a clip spans, (n,), at least 1."""
    if clip.sampling == "nominal":
        return np.maximum(1.0, clip.stride * clip.frames / _NOMINAL * rates)
    step = clip.stride if clip.fps is None else rates / clip.fps
    return np.broadcast_to((clip.frames - 1) * step + 1, rates.shape)


def _room(frames: Frames, span: Rates) -> Rates:
    """Return the largest possible number of a clip's first frame, (n,)."""
    return np.maximum(frames - span, 0)


def _spread(start: Rates, span: Rates, frames: Frames, count: int) -> Frames:
    """Return `count` frames of each span, from first to last; int32 (n, count)."""
    steps = np.arange(count) * (span - 1)[:, None] / max(count - 1, 1)
    return np.minimum(np.floor(start[:, None] + steps), frames[:, None] - 1).astype(np.int32)


def _segments(frames: Frames, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first and the last frame of each segment, int64 (n, count)."""
    borders = np.round((frames - 1)[:, None] / count * np.arange(count + 1)).astype(np.int64)
    return borders[:, :-1], borders[:, 1:]
