"""Item 1: check that a GPU decodes, and that its pixels equal a CPU's, for each kind of image file."""

import importlib
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.data import encoded_batches
from benchmarks.gpu.results import Bench, Check, LeftOut, Result
from benchmarks.gpu.traces import traced
from pipeline.data.decode.decoder import Crops, decoder_for
from pipeline.data.reader import Encoded

# Bounds of a crop's mean difference from the CPU's, of 255
SUBSAMPLED = 4.0  # two decoders may also interpolate the chroma differently
JPEG = 1.0  # two decoders round differently
LOSSLESS = 0.5  # only the resizes differ, by 0.17 on a CPU (docs/explanation/benchmarks.md)

_ORIENTATION = 0x0112  # tag of EXIF


def kinds(picture: Image.Image) -> dict[str, tuple[Encoded, float]]:
    """Encode a picture in every kind of file; return each with the bound for its pixels."""

    def saved(image: Image.Image, kind: str, **options: Any) -> Encoded:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return np.frombuffer(file.getvalue(), np.uint8)

    def turned(orientation: int) -> Encoded:
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        return saved(picture, "JPEG", subsampling=0, exif=exif)

    return {
        "JPEG 4:2:0": (saved(picture, "JPEG", subsampling=2), SUBSAMPLED),
        "JPEG 4:4:4": (saved(picture, "JPEG", subsampling=0), JPEG),
        "JPEG grey": (saved(picture.convert("L"), "JPEG"), JPEG),
        "JPEG progressive": (saved(picture, "JPEG", subsampling=0, progressive=True), JPEG),
        "JPEG CMYK": (saved(picture.convert("CMYK"), "JPEG"), SUBSAMPLED),
        **{f"JPEG EXIF {turn}": (turned(turn), JPEG) for turn in (1, 3, 6, 8)},
        "PNG": (saved(picture, "PNG"), LOSSLESS),
        "WebP": (saved(picture, "WebP"), LOSSLESS),
    }


def by_kind(bench: Bench, load: int) -> Iterator[Result]:
    """Compare crops of a photograph of the data set, in every kind of file, with or without the JPEG hardware."""
    scale, size = bench.scale, bench.scale.check_size
    photograph = _photograph(bench)
    ours = decoder_for(scale.device, 3, size, 2, load)
    reference = decoder_for(torch.device("cpu"), 3, size, 2, 0)
    for kind, (encoded, bound) in kinds(photograph).items():
        width, height = photograph.size
        if kind in ("JPEG EXIF 6", "JPEG EXIF 8"):
            width, height = height, width
        crops = _three_crops(encoded, height, width)
        ours.feed(crops)
        reference.feed(crops)
        made, expected = ours.take(), reference.take()
        off = (made.images.cpu().float() - expected.images.float()).abs()
        mean, most = float(off.mean((1, 2, 3)).max()), float(off.max())
        right = made.problems.keys() == expected.problems.keys() and mean <= bound
        numbers = {"mean of the worst crop": mean, "bound": bound, "most": most, "problems": made.problems}
        yield Check(f"pixels of {kind}, hw_decoder_load={load}", right, numbers)


def decodes_itself(bench: Bench, load: int) -> Iterator[Result]:
    """Check by its kernels, or the use of its JPEG hardware, that the GPU decodes; without libnvjpeg a CPU would."""
    name = f"the GPU decodes JPEG, hw_decoder_load={load}"
    if bench.scale.dry:
        yield LeftOut(name, "there is no GPU")
        return
    (crops, *_) = encoded_batches(bench.shards, bench.scale.check_images)
    decoder = decoder_for(bench.scale.device, bench.scale.check_images, bench.scale.check_size, 2, load)

    def decode() -> None:
        decoder.feed(crops)
        decoder.take()

    decode()
    if load:
        use = _use_of_the_hardware(decode)
        yield Check(name, use > 0, {"% of its time": use})
    else:
        kernels = traced(decode, 2, bench.scale.device).kernels()
        yield Check(name, any("jpeg" in kernel.lower() for kernel in kernels), {"kernels": sorted(kernels)})


def _use_of_the_hardware(decode: Callable[[], None]) -> int:
    """Return the highest utilisation of the JPEG hardware in two seconds of decoding, in percent, from the driver."""
    nvml: Any = importlib.import_module("pynvml")
    nvml.nvmlInit()
    handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
    most, end = 0, time.monotonic() + 2
    while time.monotonic() < end:
        decode()
        most = max(most, nvml.nvmlDeviceGetJpgUtilization(handle)[0])
    return most


def bad_image(bench: Bench) -> Iterator[Result]:
    """Check that bytes that are not an image affect only their own sample, not the rest of the batch."""
    scale = bench.scale
    (crops, *_) = encoded_batches(bench.shards, scale.check_images)
    bad = scale.check_images // 2
    broken = list(crops.encoded)
    broken[bad] = np.full(1000, 255, np.uint8)
    decoder = decoder_for(scale.device, scale.check_images, scale.check_size, 2, 0)
    decoder.feed(crops)
    whole = decoder.take().images.cpu()
    decoder.feed(replace(crops, encoded=broken))
    decoder.feed(crops)
    rescued, after = decoder.take(), decoder.take()
    others = torch.arange(len(whole)) != bad
    same = torch.equal(rescued.images.cpu()[others], whole[others]) and torch.equal(after.images.cpu(), whole)
    black = not rescued.images[bad].any()
    numbers = {"problems": {str(place): why for place, why in rescued.problems.items()}, "others the same": same}
    yield Check("rescue of a bad image", list(rescued.problems) == [bad] and same and black, numbers)


def _photograph(bench: Bench) -> Image.Image:
    """Return the first image of the data set, cropped to be wider than high, so that a wrong rotation shows."""
    (crops, *_) = encoded_batches(bench.shards, 1)
    (encoded,) = crops.encoded
    assert encoded is not None
    image = Image.open(io.BytesIO(encoded.tobytes())).convert("RGB")
    return image.crop((0, 0, image.width, min(image.height, image.width * 3 // 4)))


def _three_crops(encoded: Encoded, height: int, width: int) -> Crops:
    """Request the whole image, its middle, and a mirrored corner."""
    boxes = [
        (0, 0, height, width),
        (height // 8, width // 8, height * 3 // 4, width * 3 // 4),
        (height // 2, width // 2, height - height // 2, width - width // 2),
    ]
    return Crops([encoded] * 3, np.array(boxes, np.int32), np.array([0, 0, 1], np.int32))
