"""Decode made-up images as a run would, in a process of its own: a decoder may kill the process that it is in.

    python -m pipeline.data.decode.selftest DEVICE DECODING

DEVICE is a CUDA device or, for tests, `cpu`; DECODING is a `Decoding` in JSON. Lines on the standard output tell how
far it came: READY once libraries and device are there, SOUND if all crops are those of the CPU, and SLOW if DALI has
not found libnvjpeg, without which it decodes on the CPU. `gpu.py` starts this and judges how it ended.
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
CLOSE = 4.0  # of 255, on average over a crop: decoders round chroma differently, a wrong crop is further off

_SIZE = 224
_IMAGE = 375, 500
_BATCH, _BATCHES, _THREADS = 64, 4, 4


def image(seed: int, mode: str = "RGB", kind: str = "JPEG", turn: int = 1, **options: Any) -> NDArray[np.uint8]:
    """Encode a smooth picture, uint8 (bytes,), of the size of a photograph of ImageNet.

    Args:
        seed: of the picture.
        mode, kind: Pillow's names of the pixels and of the format.
        turn: EXIF orientation.
        options: of Pillow's `save`.
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
    """A batch of all kinds, with boxes in images as they are to be shown."""
    random = np.random.default_rng(batch)
    names = [list(KINDS)[place % len(KINDS)] for place in range(_BATCH)]
    pictures = {name: image(number, **KINDS[name]) for number, name in enumerate(KINDS)}
    sizes = np.array([_IMAGE[::-1] if name in ("EXIF 6", "EXIF 8") else _IMAGE for name in names])
    sides = (sizes * random.uniform(0.3, 1, sizes.shape)).astype(np.int32)
    corners = (random.uniform(0, 1, sizes.shape) * (sizes - sides)).astype(np.int32)
    flips = random.integers(0, 2, _BATCH, dtype=np.int32)
    return Crops([pictures[name] for name in names], np.concatenate([corners, sides], axis=1), flips)


def furthest(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> tuple[float, str]:
    """The largest mean difference of a crop, and its kind; both are uint8 (n, size, size, 3) made of `crops`."""
    off = np.abs(found.astype(np.int16) - expected).mean(axis=(1, 2, 3))
    worst = int(off.argmax())
    return float(off[worst]), list(KINDS)[worst % len(KINDS)]


def test(device_id: int | None, decoding: Decoding) -> str:
    """Decode on a device and on the CPU, and say what is wrong; "" if nothing is. Raises RuntimeError where DALI does.

    Args:
        device_id: CUDA device, None for the CPU.
        decoding: how the device decodes.
    """
    tested = Graph(_BATCH, _THREADS, device_id, image_nodes(decoding, _SIZE))
    reference = Graph(_BATCH, _THREADS, None, image_nodes(size=_SIZE))
    batches = [crops(batch) for batch in range(_BATCHES)]
    print(READY, flush=True)
    for batch in batches:  # all are under way at once, as in training
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
    """Exit status 0 if all crops are right; else the last line on the standard error says what is wrong."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is an answer, not worth gigabytes of a core
    device, settings = sys.argv[1:]
    try:
        problem = test(None if device == "cpu" else int(device), Decoding(**json.loads(settings)))
    except RuntimeError as error:
        problem = cause(error)
    if problem:
        print(f"\n{problem}", file=sys.stderr)  # libraries end their last line or do not
    return bool(problem)


if __name__ == "__main__":
    sys.exit(main())
