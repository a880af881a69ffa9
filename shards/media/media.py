"""What a kind of sample, such as images, has to tell of a file; `registry` lists the kinds that there are."""

from dataclasses import dataclass
from typing import Literal, Protocol

DEFAULT_MAX_PIXELS = 100_000_000
# Room for DEFAULT_MAX_PIXELS with four uncompressed channels and as much metadata as there ever is. A larger file is
# not read, so that one of them cannot take all memory.
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
    """How files are checked and stored.

    Args:
        max_pixels: a larger picture is not decoded, but rejected.
        resize: shrink the short side to this many pixels where it is longer, and store all in one format.
        check: `decode` all of a file, or only its `header` where its bytes can be kept.
        frames: `jpeg` stores videos as JPEGs of their frames; None: in a codec of videos.
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
    """What the manifest says of a video besides its size, in columns of the same names; see docs/data-format.md.

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
    """A sample as it is stored: its bytes, the suffix that names their format, and its size in pixels, upright."""

    data: bytes
    suffix: str
    height: int
    width: int
    video: VideoStream | None = None


class Media(Protocol):
    """A kind of sample.

    `name` stands in the manifest. `suffixes` are those of the names of its files, in lower case and without the dot;
    of files with one of `kept`, which are some of them, the bytes may be stored as they are. `changed` says of a file
    whose bytes are not why.
    """

    name: str
    suffixes: frozenset[str]
    kept: frozenset[str]
    changed: str

    def check(self, data: bytes, options: CheckOptions) -> Checked:
        """Check the bytes of a file and return what to store. Raises Rejected for a file that cannot be used."""
        ...

    def probe(self, data: bytes) -> Checked:
        """Return what `check` has returned with the bytes that it stored, as far as their header tells.

        Raises Rejected where the header cannot be read.
        """
        ...

    def thumbnail(self, data: bytes, side: int) -> bytes:
        """Return a small upright JPEG of a stored sample, with at most `side` pixels a side.

        May raise any exception for bytes that cannot be shown.
        """
        ...

    def moving(self, data: bytes, side: int) -> bytes | None:
        """Return a short MP4 of a stored sample that browsers play, of which the short side has at most `side` pixels.

        None for what does not move. May raise any exception as well.
        """
        ...


def refuse_huge(size: int) -> None:
    """Raise Rejected for a file of more bytes than are read of any."""
    if size > MAX_BYTES:
        raise Rejected("too many bytes", f"{size} bytes, more than {MAX_BYTES}")


def out_of_memory() -> Rejected:
    """Return the reason to leave out a file for which there is not enough memory."""
    return Rejected("needs too much memory", "shrink it, or use fewer workers or a larger machine")
