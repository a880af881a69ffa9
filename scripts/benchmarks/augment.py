"""Compare RandAugment on the device with timm's on the host and DALI's."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from timm.data.auto_augment import rand_augment_transform

from benchmarks.figures import Figure
from benchmarks.hardware import synchronise
from benchmarks.racing import compare, race
from pipeline.data.augment import sample_keys
from pipeline.finetune.randaugment import rand_augment
from pipeline.finetune.transforms import FILL

BATCHES = 8  # per round, each with other choices

Pictures = list[Image.Image]


def augment(size: int, device: torch.device, images: int, threads: int) -> list[Figure]:
    """Apply two layers with probability 0.5 each: one transform per image on average."""
    pictures = _pictures(size, images)
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    torch.set_num_threads(threads)
    with ProcessPoolExecutor(threads, get_context("forkserver"), _keep, (pictures,)) as pool:
        rates = race(
            {
                "ours": _ours(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device)),
                "timm on Pillow images, 1 process": lambda: _with_timm(pictures * BATCHES),
                f"timm on Pillow images, {threads} processes": lambda: sum(pool.map(_with_timm_kept, range(threads))),
                "DALI on the CPU, its own transforms": _with_dali(pixels, threads),
            }
        )
    name = f"RandAugment, batch of {images}, {size} px, {device.type}, {threads} threads"
    return [compare(name, "images/s", rates)]


def _pictures(size: int, images: int) -> Pictures:
    """Make smooth noise, stretched over all levels."""
    rng = np.random.default_rng(0)
    noise = (Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(images))
    return [picture.filter(ImageFilter.GaussianBlur(4)).point(lambda level: 8 * level - 900) for picture in noise]


def _ours(images: torch.Tensor) -> Callable[[], int]:
    nth = count()

    def run() -> int:
        for _ in range(BATCHES):
            ids = np.arange(len(images), dtype=np.int64)
            rand_augment(images, sample_keys(0, np.full_like(ids, next(nth)), ids))
        synchronise(images.device)
        return BATCHES * len(images)

    return run


def _with_timm(pictures: Sequence[Image.Image]) -> int:
    """Convert augmented Pillow images to arrays. The level is always 9: at 10, Pillow 13 fails to posterize."""
    options = {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC}
    transform = rand_augment_transform("rand-m9-inc1", options)
    for picture in pictures:
        np.asarray(transform(picture))
    return len(pictures)


_kept: Pictures = []  # in each process of a pool


def _keep(pictures: Pictures) -> None:
    _kept.extend(pictures)


def _with_timm_kept(_: int) -> int:
    """Run in a pool; results stay in the process, so that returning them costs nothing."""
    return _with_timm(_kept * BATCHES)


def _with_dali(pixels: Any, threads: int) -> Callable[[], int]:
    """Apply one transform per image, bilinear where geometric, with a strength that all images share."""
    from nvidia.dali import fn
    from nvidia.dali.auto_aug import rand_augment
    from nvidia.dali.pipeline import pipeline_def

    size = pixels.shape[1:3]

    @pipeline_def(enable_conditionals=True)  # type: ignore[untyped-decorator]
    def graph() -> Any:
        images = fn.external_source(source=lambda: list(pixels), layout="HWC")
        return rand_augment.rand_augment(images, n=1, m=27, num_magnitude_bins=31, shape=size)

    pipeline = graph(batch_size=len(pixels), num_threads=threads, device_id=None, prefetch_queue_depth=1)

    def run() -> int:
        for _ in range(BATCHES):
            pipeline.run()
        return BATCHES * len(pixels)

    return run
