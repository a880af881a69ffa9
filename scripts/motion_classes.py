"""Make videos of ten motions over photographs, to test whether a model uses time.

    python scripts/motion_classes.py OUT [--train 800] [--validation 400]

A clip is a window of 32 pixels that moves over a photograph of scikit-image or scikit-learn: left, right, up or down,
slow or fast, or it zooms in or out; these are the classes. Beyond its borders, a photograph is continued by its mirror
image, and a window may be anywhere, so that all frames of the moving clips have the same distribution for every class
and frame number: a single one has no information. (The windows of a zoom grow or shrink by half from the first frame to
the last; those in the middle are like all others.) Frames in unknown order do not distinguish a motion from the
opposite one. Training and validation are windows on the same eight photographs.

Three sets of the same clips are written, each as SET/train/CLASS/*.mp4 and SET/validation/CLASS/*.mp4:

    OUT/clips       the clips
    OUT/still       each clip's middle frame, in place of all frames
    OUT/shuffled    the frames of each clip in a random order

docs/how-to/video.md has a probe's results. Output of an earlier call in OUT is replaced.

Example:

    python scripts/motion_classes.py motions/videos --train 400 --validation 200
"""

import math
import shutil
from pathlib import Path

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image

from demo_data import photographs
from demo_video_data import write
from pipeline.progress_bar import tracked
from shards.terminal import Parser

MARK = "made-by-motion_classes"  # an empty file in OUT
SHORT_SIDE = 160  # of the photographs, in pixels
SIDE, FRAMES = 32, 8  # size of a clip
SLOW, FAST = 2.0, 4.0  # pixels per frame
ZOOM = 1.06  # factor of the window's side from frame to frame
SCALES = (0.8, 1.25)  # least and most pixels of the photograph per pixel of the middle frame
MARGIN = 64  # pixels that a window may extend beyond its middle position

# The motion of each class: step down and across, in pixels per frame, and factor of the side
MOTIONS = {
    f"{direction}-{speed}": (down * step, across * step, 1.0)
    for direction, (down, across) in {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}.items()
    for speed, step in {"slow": SLOW, "fast": FAST}.items()
} | {"zoom-in": (0.0, 0.0, 1 / ZOOM), "zoom-out": (0.0, 0.0, ZOOM)}

Frames = NDArray[np.uint8]  # (frames, height, width, 3)


def textured() -> list[NDArray[np.uint8]]:
    """Return eight photographs with texture in nearly all windows: uint8 (height, width, 3)."""
    named = photographs()
    grey = [skimage.data.brick(), skimage.data.coins(), skimage.data.grass(), skimage.data.gravel()]
    colours = [named["cat"], named["china"], named["motorcycle-left"], skimage.data.immunohistochemistry()]
    return [*(np.repeat(photograph[..., None], 3, axis=2) for photograph in grey), *colours]


def mirrored(photograph: NDArray[np.uint8]) -> Image.Image:
    """Return a photograph, shrunk, with its mirror images to the right of it, below it and diagonally."""
    image = Image.fromarray(photograph)
    scale = SHORT_SIDE / min(image.size)
    pixels = np.asarray(image.resize((round(image.width * scale), round(image.height * scale))))
    height, width, _ = pixels.shape
    return Image.fromarray(
        np.pad(pixels, ((MARGIN, height + MARGIN), (MARGIN, width + MARGIN), (0, 0)), mode="symmetric")
    )


def moving(plane: Image.Image, motion: str, rng: np.random.Generator) -> Frames:
    """Cut a clip from a result of `mirrored`: with a motion at a random place and scale."""
    down, across, growth = MOTIONS[motion]
    scale = math.exp(rng.uniform(math.log(SCALES[0]), math.log(SCALES[1])))
    middle = [rng.uniform(MARGIN, side - MARGIN) for side in plane.size]
    frames = []
    for frame in range(FRAMES):
        time = frame - (FRAMES - 1) / 2
        x, y = middle[0] + across * scale * time, middle[1] + down * scale * time
        half = SIDE * scale * growth**time / 2
        frames.append(plane.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (x - half, y - half, x + half, y + half)))
    return np.stack([np.asarray(frame) for frame in frames])


def variants(clip: Frames, rng: np.random.Generator) -> dict[str, Frames]:
    """Return a clip in each of the sets."""
    still = np.repeat(clip[FRAMES // 2 : FRAMES // 2 + 1], FRAMES, axis=0)
    return {"clips": clip, "still": still, "shuffled": rng.permutation(clip)}


def make(out: Path, counts: dict[str, int]) -> None:
    """Write all sets.

    Args:
        out: folder of the sets.
        counts: numbers of clips, by "train" and "validation".
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARK).touch()
    names, planes = list(MOTIONS), [mirrored(photograph) for photograph in textured()]
    for part, count in counts.items():
        rng = np.random.default_rng([0, len(part)])
        for index in tracked(range(count), f"{count} {part} clips", count):
            motion, plane = names[index % len(names)], planes[rng.integers(len(planes))]
            for kind, frames in variants(moving(plane, motion, rng), rng).items():
                folder = out / kind / part / motion
                folder.mkdir(parents=True, exist_ok=True)
                write(folder / f"{index:05d}.mp4", frames)


def main() -> None:
    """Write the sets; exit with status 2 when OUT has anything else."""
    parser = Parser(__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--train", type=int, default=800, help="total number of clips (%(default)s)")
    parser.add_argument("--validation", type=int, default=400, help="total number of clips (%(default)s)")
    arguments = parser.parse_args()
    if min(arguments.train, arguments.validation) < len(MOTIONS):
        parser.error(f"--train and --validation must be at least {len(MOTIONS)}, one clip per class")
    out: Path = arguments.out
    if out.exists() and not (out / MARK).exists() and (out.is_file() or any(out.iterdir())):
        parser.error(f"{out} has files that this program did not write: name a new folder")
    make(out, {"train": arguments.train, "validation": arguments.validation})


if __name__ == "__main__":
    main()
