"""Decode frames of a video by their time stamps, by PyAV, exactly those that decoding the whole would give.

PyAV, the extra `video`, is imported only here and only for videos.
"""

import io
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from shards.media.video_stream import CONTAINERS, video_streams


class FramesError(Exception):
    """The requested frames of a video cannot be decoded; the message says why."""


def frames_at(encoded: NDArray[np.uint8], stamps: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield the frames with these time stamps, each as (stamp, frame): uint8 (height, width, 3).

    Decoding begins at the key frame before the first of them. If that does not give all of them, because the index of
    key frames is wrong or frames need others before the key frame, it begins again at the start of the file, and frames
    are repeated.

    Args:
        encoded: a file, uint8 (bytes,).
        stamps: ascending, in units of the time base of the video stream.

    Raises:
        FramesError: the file is damaged, or does not have such a frame.
    """
    import av

    missing = set(stamps)
    for seeking in (True, False):
        try:
            for stamp, pixels in _decoded(encoded, stamps, seeking):
                missing.discard(stamp)
                yield stamp, pixels
            why = f"{len(missing)} of {len(stamps)} frames are missing"
        except (av.error.FFmpegError, ValueError, EOFError, OverflowError) as error:
            why = str(error)
        if not missing:
            return
    raise FramesError(why)


def _decoded(
    encoded: NDArray[np.uint8], stamps: Sequence[int], seeking: bool
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield the requested frames among those decoded from the preceding key frame or from the start of the file."""
    import av

    wanted = set(stamps)
    options = {"format_whitelist": CONTAINERS}
    with av.open(io.BytesIO(encoded.tobytes()), metadata_errors="replace", container_options=options) as container:
        streams = video_streams(container)
        if not streams:
            raise ValueError("the file does not have a video stream")
        stream = streams[0]
        stream.codec_context.thread_count = 1  # other threads decode other clips
        if seeking:
            container.seek(stamps[0], stream=stream)
        converter = av.video.reformatter.VideoReformatter()
        landed = begun = not seeking
        for packet in container.demux(stream):
            if not landed and (packet.pts is None or packet.pts > stamps[0]):
                return  # frames displayed before a key frame, but stored after it, may depend on earlier ones
            landed = True
            begun = begun or packet.is_discard  # a key frame that is hidden
            for frame in packet.decode():
                if not (begun or frame.key_frame):
                    return  # the index is wrong: this frame needs earlier ones, which the decoder made up
                begun = True
                if frame.pts in wanted:
                    wanted.discard(frame.pts)
                    yield frame.pts, converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                if not wanted or (seeking and frame.pts is not None and frame.pts > stamps[-1]):
                    return
