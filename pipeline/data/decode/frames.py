"""Frames of an encoded video by their time stamps, by PyAV, exactly those that decoding all of it would give.

PyAV is the extra `video`, and imported only here and only for videos.
"""

import io
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from shards.media.video_stream import CONTAINERS, video_streams


class FramesError(Exception):
    """A video does not give its frames; the message says why."""


def frames_at(encoded: NDArray[np.uint8], stamps: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield the frames with these time stamps, each with its own: uint8 (height, width, 3).

    Decoding begins at the key frame before the first of them. Should that not give all of them, as where the index of
    key frames is wrong or frames need some of before the key frame, it begins anew at the start of the file, and frames
    come twice.

    Args:
        encoded: a file, uint8 (bytes,).
        stamps: ascending, in units of the time base of the video stream.

    Raises:
        FramesError: the file is damaged, or has no such frame.
    """
    import av

    missing = set(stamps)
    for seeking in (True, False):
        try:
            for stamp, pixels in _decoded(encoded, stamps, seeking):
                missing.discard(stamp)
                yield stamp, pixels
            why = f"{len(missing)} of {len(stamps)} frames are not there"
        except (av.error.FFmpegError, ValueError, EOFError, OverflowError) as error:
            why = str(error)
        if not missing:
            return
    raise FramesError(why)


def _decoded(
    encoded: NDArray[np.uint8], stamps: Sequence[int], seeking: bool
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield those of the frames that are met, from the key frame before them on or from the start of the file."""
    import av

    wanted = set(stamps)
    options = {"format_whitelist": CONTAINERS}
    with av.open(io.BytesIO(encoded.tobytes()), metadata_errors="replace", container_options=options) as container:
        streams = video_streams(container)
        if not streams:
            raise ValueError("there is no video stream")
        stream = streams[0]
        stream.codec_context.thread_count = 1  # others decode other clips meanwhile
        if seeking:
            container.seek(stamps[0], stream=stream)
        converter = av.video.reformatter.VideoReformatter()
        landed = begun = not seeking
        for packet in container.demux(stream):
            if not landed and (packet.pts is None or packet.pts > stamps[0]):
                return  # frames shown before a key frame, but stored after it, may not be decoded without those before
            landed = True
            begun = begun or packet.is_discard  # a key frame that is hidden
            for frame in packet.decode():
                if not (begun or frame.key_frame):
                    return  # the index is wrong: this frame needs some of before it, which the decoder made up
                begun = True
                if frame.pts in wanted:
                    wanted.discard(frame.pts)
                    yield frame.pts, converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                if not wanted or (seeking and frame.pts is not None and frame.pts > stamps[-1]):
                    return
