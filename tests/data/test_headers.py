"""Images that DALI must not be given, found by their headers."""

import io

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from model.size import ImageSize
from pipeline.data.decode.decoder import CpuDecoder, GpuDecoder
from pipeline.data.decode.graphs import Crops, Decoding
from pipeline.data.decode.headers import readable

COUNT, SIDE = 48, 64
KINDS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")  # GIF is read where data sets are built only


def image(seed: int, kind: str = "JPEG", turn: int = 1) -> NDArray[np.uint8]:
    picture = np.random.default_rng(seed).integers(0, 256, (SIDE // 8, SIDE // 4, 3), dtype=np.uint8)
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = turn
    Image.fromarray(picture).resize((2 * SIDE, SIDE)).save(file, kind, exif=exif)
    return np.frombuffer(file.getvalue(), np.uint8)


BAD = {
    "zeros": np.zeros(2000, np.uint8),
    "nothing": np.zeros(0, np.uint8),
    "a page": np.frombuffer(b"<html>not found</html>" * 20, np.uint8),
    "the beginning": image(1)[:40],
    "without a size": np.concatenate([image(1)[:2], image(1)[-2:]]),
    "smaller": image(2),
}


def crops(bad: str | None) -> Crops:
    """Return crops of the left half of 48 images; one is bad, or its crop exceeds it."""
    images: list[NDArray[np.uint8] | None] = [image(seed, KINDS[seed % len(KINDS)]) for seed in range(COUNT)]
    boxes = np.tile(np.array([0, 0, SIDE, SIDE], np.int32), (COUNT, 1))
    if bad is not None:
        images[17] = BAD[bad]
    if bad == "smaller":
        boxes[17] = (1, 0, SIDE, SIDE)
    return Crops(images, boxes, np.zeros(COUNT, np.int32))


@pytest.mark.parametrize("kind", ["CPU", "graph"])
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_image_of_many_costs_no_other_and_not_the_process(kind: str, bad: str) -> None:
    """DALI 2.4 crashes within some tries where it finds these in a batch of so many."""
    size, device = ImageSize(16, 16), torch.device("cpu")
    one = CpuDecoder(COUNT, size, 2) if kind == "CPU" else GpuDecoder(COUNT, size, device, 2, Decoding())
    one.feed(crops(None))
    good = one.take().images.clone()
    for _ in range(10):
        one.feed(crops(bad))
        decoded = one.take()
        assert decoded.problems.keys() == {17}
        assert not decoded.images[17].any()
        others = torch.arange(COUNT) != 17
        assert torch.equal(decoded.images[others], good[others])
    one.close()


def test_crops_are_those_of_images_as_they_are_shown() -> None:
    """An image on its side is as high as it is wide, by its EXIF."""
    batch = Crops([image(1, turn=6), image(1), None], np.array([[0, 0, 128, 64]] * 3, np.int32), np.zeros(3, np.int32))
    left, problems = readable(batch)
    assert problems == {1: "it is 128 x 64 pixels, not as when indexed"}
    assert left.readable == [0] and left.encoded[0] is batch.encoded[0]
    assert readable(left)[0] is left


def test_all_crops_of_an_image_have_to_fit() -> None:
    boxes = np.array([[0, 0, 64, 128], [0, 0, 9, 9], [0, 0, 9, 9], [56, 0, 9, 9]], np.int32)
    _, problems = readable(Crops([image(1), image(2)], boxes, np.zeros(4, np.int32)))
    assert problems.keys() == {1}
