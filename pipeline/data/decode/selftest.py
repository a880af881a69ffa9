"""Decode synthetic images as a run would, in a separate process, since a decoder may kill its process.

    python -m pipeline.data.decode.selftest DEVICE DECODING

DEVICE is a CUDA device or, for tests, `cpu`; DECODING is a `Decoding` in JSON. Lines on the standard output show the
progress: READY once libraries and device are available, SOUND if all crops equal those of the CPU, and SLOW if DALI has
not found libnvjpeg, in which case it decodes on the CPU. `gpu.py` starts this program and judges how it ended.
"""

import io
import json
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.size import ImageSize
from pipeline.data.decode.graphs import Crops, Decoding, Graph, cause, image_nodes

READY, SOUND, SLOW = "ready", "sound", "no libnvjpeg"

KINDS: dict[str, dict[str, Any]] = {
    "4:2:0": {"subsampling": 2},
    "4:4:4": {"subsampling": 0},
    "grey": {"mode": "L"},
    "progressive": {"progressive": True},
    **{f"EXIF {turn}": {"turn": turn} for turn in (1, 3, 6, 8)},
    "PNG": {"kind": "PNG"},
}
CLOSE = 4.0  # of 255, averaged over a crop: decoders round chroma differently, and a wrong crop differs more

_SIZE = ImageSize(224, 224)
_IMAGE = 375, 500
_BATCH, _BATCHES, _THREADS = 64, 4, 4


def image(seed: int, mode: str = "RGB", kind: str = "JPEG", turn: int = 1, **options: Any) -> NDArray[np.uint8]:
    """Encode a smooth picture, uint8 (bytes,), of the size of a typical ImageNet photograph.

    Args:
        seed: that of the picture.
        mode, kind: Pillow's names of the pixel mode and the format.
        turn: EXIF orientation.
        options: those of Pillow's `save`.
    """
    height, width = _IMAGE
    patches = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = turn
    file = io.BytesIO()
    picture.save(file, kind, exif=exif, **options)
    return np.frombuffer(file.getvalue(), np.uint8)


def crops(batch: int) -> Crops:
    """Return a batch of all kinds of images, with boxes in the images as displayed."""
    random = np.random.default_rng(batch)
    names = [list(KINDS)[place % len(KINDS)] for place in range(_BATCH)]
    pictures = {name: image(number, **KINDS[name]) for number, name in enumerate(KINDS)}
    sizes = np.array([_IMAGE[::-1] if name in ("EXIF 6", "EXIF 8") else _IMAGE for name in names])
    sides = (sizes * random.uniform(0.3, 1, sizes.shape)).astype(np.int32)
    corners = (random.uniform(0, 1, sizes.shape) * (sizes - sides)).astype(np.int32)
    flips = random.integers(0, 2, _BATCH, dtype=np.int32)
    return Crops([pictures[name] for name in names], np.concatenate([corners, sides], axis=1), flips)


def furthest(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> tuple[float, str]:
    """Return the largest mean difference of a crop, and its kind; both are uint8 (n, H, W, 3), from `crops`."""
    off = np.abs(found.astype(np.int16) - expected).mean(axis=(1, 2, 3))
    worst = int(off.argmax())
    return float(off[worst]), list(KINDS)[worst % len(KINDS)]


def test(device_id: int | None, decoding: Decoding) -> str:
    """Decode on a device and on the CPU, and return what is wrong, "" if nothing. Raises RuntimeError where DALI does.

    Args:
        device_id: CUDA device, None for the CPU.
        decoding: the decoder options.
    """
    tested = Graph(_BATCH, _THREADS, device_id, image_nodes(decoding, _SIZE))
    reference = Graph(_BATCH, _THREADS, None, image_nodes(size=_SIZE))
    batches = [crops(batch) for batch in range(_BATCHES)]
    print(READY, flush=True)
    for batch in batches:  # all are in progress at once, as in training
        tested.feed(batch)
        reference.feed(batch)
    for _ in batches:
        (found,), (expected,) = tested.take(), reference.take()
        off, kind = furthest(np.asarray(found.as_cpu().as_array()), np.asarray(expected.as_array()))
        if off > CLOSE:
            return f"a crop of kind {kind} differs from the CPU's by {off:.1f} of 255"
    if "libnvjpeg.so" not in Path("/proc/self/maps").read_text():
        print(SLOW)
    print(SOUND)
    return ""


def main() -> int:
    """Return 0 if all crops are right; else print what is wrong as the last line of the standard error."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is a result, and its core would take gigabytes
    device, settings = sys.argv[1:]
    try:
        problem = test(None if device == "cpu" else int(device), Decoding(**json.loads(settings)))
    except RuntimeError as error:
        problem = cause(error)
    if problem:
        print(f"\n{problem}", file=sys.stderr)  # libraries may leave their last line unterminated
    return bool(problem)


if __name__ == "__main__":
    sys.exit(main())
