"""Make the video demo's clips: short squares cut from a few videos.

    python scripts/demo_video_data.py OUT VIDEO...

Writes OUT/train, OUT/validation and OUT/later, with a folder for each video. The last fifth of a video's frames is
`later`, on which nothing is trained. In the part before, the last 20 of each 100 frames are `validation`: they lie
between seconds that the model has seen. The rest is `train`. Every file is an H.264 video of a few frames, shrunk to
squares of 96 pixels: from the left, the centre and the right of a video that is wide enough. Output of an earlier call
in OUT is replaced.

Example:

    python scripts/demo_video_data.py demo_video/videos bikes.mp4 bigbuckbunny.mp4
"""

import shutil
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.progress_bar import tracked
from shards.terminal import Parser

SIDE = 96  # of the squares, in pixels
MARK = "made-by-demo_video_data"  # an empty file in OUT
PERIOD, TRAINED = 100, 80  # frames; the first TRAINED of each period are for training
LATER = 5  # the last of this many parts of a video
TRAINING, TRAINING_STEP = 24, 8  # frames of a training file, and distance of the starts of files
VALIDATION, VALIDATION_STEP = 16, 2

Frames = NDArray[np.uint8]  # (frames, height, width, 3)


def decoded(path: Path) -> Frames:
    """Decode a video, shrunk to a short side of `SIDE` pixels."""
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            scale = SIDE / min(frame.height, frame.width)
            frames.append(frame.to_image().resize((round(frame.width * scale), round(frame.height * scale))))
    return np.stack([np.asarray(frame) for frame in frames])


def squares(frames: Frames) -> dict[str, Frames]:
    """Cut the largest squares at the left, the centre and the right, as far as they differ by half their side."""
    _, height, width, _ = frames.shape
    places = {"left": 0, "centre": (width - height) // 2, "right": width - height} if width > height else {"": 0}
    if width - height < height:
        places = {"centre": (width - height) // 2}
    return {name: frames[:, :, left : left + height][:, :SIDE] for name, left in places.items()}


def parts(frames: int) -> Iterator[tuple[str, range]]:
    """Yield the files to cut from a video of this many frames: the set, and the numbers of its frames."""
    later = frames - frames // LATER
    for start in range(0, later, PERIOD):
        trained, end = min(start + TRAINED, later), min(start + PERIOD, later)
        yield from (("train", part) for part in windows(start, trained, TRAINING, TRAINING_STEP))
        yield from (("validation", part) for part in windows(trained, end, VALIDATION, VALIDATION_STEP))
    yield from (("later", part) for part in windows(later, frames, VALIDATION, VALIDATION_STEP))


def windows(start: int, stop: int, length: int, step: int) -> Iterator[range]:
    """Yield ranges of `length` numbers within `start` to `stop` - 1, one every `step`."""
    for first in range(start, stop - length + 1, step):
        yield range(first, first + length)


def write(path: Path, frames: Frames) -> None:
    """Write frames as H.264 that decodes fast, in the same bytes every time."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.options = {"crf": "18", "tune": "fastdecode", "mbtree": "0", "bf": "0", "g": "16"}
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))


def make(out: Path, videos: Sequence[Path]) -> None:
    """Write all sets."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARK).touch()
    for video in tracked(videos, f"clips of {len(videos)} videos", len(videos)):
        for place, frames in squares(decoded(video)).items():
            for name, part in parts(len(frames)):
                folder = out / name / video.stem
                folder.mkdir(parents=True, exist_ok=True)
                write(folder / f"{part.start:05d}-{place}.mp4", frames[part.start : part.stop])


def main() -> None:
    """Write the sets; exit with status 2 when OUT has anything else or a video cannot be read."""
    parser = Parser(__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("videos", type=Path, metavar="VIDEO", nargs="+", help="a file that PyAV decodes")
    arguments = parser.parse_args()
    out: Path = arguments.out
    if out.exists() and not (out / MARK).exists() and (out.is_file() or any(out.iterdir())):
        parser.error(f"{out} has files that this program did not write: name a new folder")
    try:
        make(out, arguments.videos)
    except (OSError, ValueError) as error:  # PyAV's errors are these
        parser.error(f"a video cannot be read ({error}): leave it out")


if __name__ == "__main__":
    main()
