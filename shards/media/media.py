"""The interface of a kind of sample, such as images; `registry` lists the kinds."""

from dataclasses import dataclass
from typing import Literal, Protocol

DEFAULT_MAX_PIXELS = 100_000_000
# Room for DEFAULT_MAX_PIXELS with four uncompressed channels and as much metadata as ever occurs. A larger file is
# not read, so that a single one cannot exhaust memory.
MAX_BYTES = 2**29

Check = Literal["decode", "header"]
Frames = Literal["jpeg"]
Alpha = Literal["reject", "white", "black", "drop"]
Depth = Literal["reject", "scale"]


class Rejected(Exception):
    """A file that cannot be used: a short `reason` to count by, and a `detail`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class CheckOptions:
    """The options for checking and storing files.

    Args:
        max_pixels: a larger picture is rejected without decoding.
        resize: shrink the short side to this many pixels where it is longer, and store all in one format.
        check: `decode` all of a file, or only its `header` where its bytes can be kept.
        frames: `jpeg` stores videos as JPEGs of their frames; None: in a video codec.
        frame_stride: with `frames`, store only every `frame_stride`-th frame, from the first on.
        alpha: what becomes of images with transparent pixels: `reject` them, put them on a `white` or `black`
            background, or `drop` the transparency and show the colours that it hides.
        depth: what becomes of images of 9 to 16 bits a channel: `reject` them, or `scale` them to the top 8 bits.
    """

    max_pixels: int = DEFAULT_MAX_PIXELS
    resize: int | None = None
    check: Check = "decode"
    frames: Frames | None = None
    frame_stride: int = 1
    alpha: Alpha = "reject"
    depth: Depth = "reject"


@dataclass(frozen=True)
class VideoStream:
    """The columns of the manifest that describe a video, besides its size; see docs/reference/data-format.md.

    Frames are numbered in the order in which they are shown. With a constant rate, frame i has the time stamp
    `pts_start + i * pts_step`; otherwise both are None and `pts` has one for each frame. The columns `jpeg_*` are None
    unless the frames are JPEGs that follow each other in the file.
    """

    frames: int
    fps_num: int
    fps_den: int
    duration: float
    codec: str
    pix_fmt: str
    time_base_num: int
    time_base_den: int
    pts_start: int | None
    pts_step: int | None
    pts: list[int] | None
    key_frames: list[int]
    key_offsets: list[int] | None
    jpeg_offset: int | None = None
    jpeg_sizes: list[int] | None = None
    jpeg_crc32c: list[int] | None = None

    def stamps(self) -> list[int]:
        """Return the time stamp of every frame."""
        if self.pts is not None or self.pts_start is None or self.pts_step is None:
            return self.pts or []
        return [self.pts_start + number * self.pts_step for number in range(self.frames)]


@dataclass(frozen=True)
class Checked:
    """A checked sample to store: its bytes, the suffix of their format, and its size in pixels, upright."""

    data: bytes
    suffix: str
    height: int
    width: int
    video: VideoStream | None = None


class Media(Protocol):
    """A kind of sample.

    `name` is the kind in the manifest. `suffixes` are the file suffixes of the kind, in lower case and without the dot;
    `kept` is the subset whose bytes may be stored unchanged. `changed` says why a file's bytes cannot be stored
    unchanged.
    """

    name: str
    suffixes: frozenset[str]
    kept: frozenset[str]
    changed: str

    def check(self, data: bytes, options: CheckOptions) -> Checked:
        """Check the bytes of a file and return the sample to store. Raises Rejected for a file that cannot be used."""
        ...

    def probe(self, data: bytes) -> Checked:
        """Return the result of `check` for bytes that it stored, as far as their header gives it.

        Raises Rejected where the header cannot be read.
        """
        ...

    def thumbnail(self, data: bytes, side: int) -> bytes:
        """Return a small upright JPEG of a stored sample, with at most `side` pixels per side.

        May raise any exception for bytes that cannot be shown.
        """
        ...

    def moving(self, data: bytes, side: int) -> bytes | None:
        """Return a short MP4 of a stored sample for browsers, whose short side has at most `side` pixels.

        None for a sample that does not move. May raise any exception as well.
        """
        ...


def refuse_huge(size: int) -> None:
    """Raise Rejected for a file of more than `MAX_BYTES`."""
    if size > MAX_BYTES:
        raise Rejected("too many bytes", f"{size} bytes, more than {MAX_BYTES}")


def out_of_memory() -> Rejected:
    """Return the rejection of a file for which there is not enough memory."""
    return Rejected("needs too much memory", "shrink it, or use fewer workers or a larger machine")
