"""Decode clips of videos that are stored as JPEGs of their frames: every frame is an image with the clip's crop."""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.augment import Boxes
from pipeline.data.clips import Frames
from pipeline.data.decode.graphs import Crops
from pipeline.data.decode.queues import Decoded, Decoder


@dataclass(frozen=True)
class JpegClips(Crops):
    """The frames of m videos, and n clips of T frames to make of them, those of a video in a row.

    `encoded` has the JPEGs of those frames of a video that any of its clips contains, each once, in ascending order,
    concatenated. `frames`, int32 (n, T), are their numbers, and `sizes`, int32 (frames of the video,), the bytes of
    each frame in a video.
    """

    frames: Frames
    sizes: list[NDArray[np.int32]]

    def images(self) -> Crops:
        """Return every frame of every clip as an image, n * T in total, those of a clip in a row."""
        clips, images = self.frames.reshape(len(self.encoded), -1), list[NDArray[np.uint8] | None]()
        for encoded, sizes, frames in zip(self.encoded, self.sizes, clips, strict=True):
            if encoded is None:
                images += [None] * len(frames)
                continue
            wanted, order = np.unique(frames, return_inverse=True)
            jpegs = np.split(encoded, np.cumsum(sizes[wanted])[:-1])
            images += [jpegs[place] for place in order.tolist()]
        length = self.frames.shape[1]
        boxes: Boxes = self.boxes.repeat(length, axis=0)
        return Crops(images, boxes, self.flips.repeat(length))


class JpegClipDecoder:
    """Decodes clips with the decoder of images.

    Args:
        images: the decoder of all frames of a batch as images.
    """

    def __init__(self, images: Decoder) -> None:
        self._images = images
        self._fed: deque[JpegClips] = deque()

    def feed(self, crops: Crops) -> None:
        """Queue a batch."""
        assert isinstance(crops, JpegClips)
        self._images.feed(crops.images())
        self._fed.append(crops)

    def take(self) -> Decoded:
        """Return the oldest batch; see `Decoder`. All clips of a video are black if one of its frames is bad."""
        crops, decoded = self._fed.popleft(), self._images.take()
        videos, numbers = len(crops.encoded), crops.frames.reshape(-1)
        clips = decoded.images.view(*crops.frames.shape, *decoded.images.shape[1:]).movedim(2, 1)
        problems: dict[int, str] = {}
        for place, why in decoded.problems.items():
            problems.setdefault(place * videos // len(numbers), f"frame {numbers[place]}: {why}")
        for video in problems:
            clips[video * crops.repeats : (video + 1) * crops.repeats] = 0
        return Decoded(clips, problems)

    def close(self) -> None:
        """Stop the threads; batches that were not taken are lost."""
        self._images.close()
