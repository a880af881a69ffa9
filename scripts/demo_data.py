"""Make the demo's images: crops of the photographs in scikit-image and scikit-learn.

    python scripts/demo_data.py OUT [--train 4000] [--validation 512]

Writes OUT/train/<photograph>/*.jpg and OUT/validation/<photograph>/*.jpg. Both are overlapping crops of the same nine
photographs, shrunk, of varying size and shape, in different places: validation shows that a model has learned these
scenes, not vision in general. Output of an earlier call in OUT is replaced.

Example:

    python scripts/demo_data.py demo/images --train 400 --validation 64
"""

import shutil
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_image

from pipeline.progress_bar import tracked
from shards.terminal import Parser

SHORT_SIDE = 192  # of the photographs, in pixels: small, so that learning shows soon
MARK = "made-by-demo_data"  # an empty file in OUT
SIDES = (112, 176)  # smallest and largest side of the crops, in pixels


def photographs() -> dict[str, np.ndarray]:
    """Return nine natural colour photographs: name to uint8 (height, width, 3)."""
    left, right, _ = skimage.data.stereo_motorcycle()
    return {
        "astronaut": skimage.data.astronaut(),
        "cat": skimage.data.chelsea(),
        "china": load_sample_image("china.jpg"),
        "coffee": skimage.data.coffee(),
        "flower": load_sample_image("flower.jpg"),
        "motorcycle-left": left,
        "motorcycle-right": right,
        "retina": skimage.data.retina(),
        "rocket": skimage.data.rocket(),
    }


def shrink(photograph: np.ndarray) -> np.ndarray:
    """Resize a photograph to a short side of `SHORT_SIDE` pixels."""
    height, width, _ = photograph.shape
    scale = SHORT_SIDE / min(height, width)
    return np.asarray(Image.fromarray(photograph).resize((round(width * scale), round(height * scale))))


def main() -> None:
    """Write both folders; exit with status 2 when OUT has anything else."""
    parser = Parser(__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--train", type=int, default=4000, help="total number of crops (%(default)s)")
    parser.add_argument("--validation", type=int, default=512, help="total number of crops (%(default)s)")
    arguments = parser.parse_args()
    if min(arguments.train, arguments.validation) < 1:
        parser.error("--train and --validation must be at least 1")
    out: Path = arguments.out
    if out.exists() and not (out / MARK).exists() and (out.is_file() or any(out.iterdir())):
        parser.error(f"{out} has files that this program did not write: name a new folder")
    images = {name: shrink(photograph) for name, photograph in photographs().items()}
    names = sorted(images)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARK).touch()
    for split, crops in (("train", arguments.train), ("validation", arguments.validation)):
        rng = np.random.default_rng([0, len(split)])
        for name in names:
            (out / split / name).mkdir(parents=True)
        for index in tracked(range(crops), f"{crops} {split} crops of {len(names)} photographs", crops):
            name = names[index % len(names)]
            photograph = images[name]
            height, width = rng.integers(SIDES[0], SIDES[1] + 1, 2)
            top = rng.integers(photograph.shape[0] - height + 1)
            left = rng.integers(photograph.shape[1] - width + 1)
            crop = Image.fromarray(photograph[top : top + height, left : left + width])
            crop.save(out / split / name / f"{index:05d}.jpg", quality=92)


if __name__ == "__main__":
    main()
