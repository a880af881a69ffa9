"""HOG targets and masks."""

import argparse
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.racing import Rates, race
from pipeline.targets.hog import hog_target
from pipeline.targets.masking import block_masks


def hog(arguments: argparse.Namespace) -> Rates:
    """Targets a second, for a batch of 32."""
    images = torch.randint(0, 256, (32, arguments.size, arguments.size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    compiled = torch.compile(hog_target, dynamic=False)

    def with_skimage() -> int:
        from skimage.feature import hog as skimage_hog

        for image in images[:8].permute(0, 2, 3, 1).numpy():
            for channel in range(3):
                skimage_hog(image[..., channel], 9, (8, 8), (1, 1), feature_vector=False)
        return 8

    def with_torch(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], int]:
        return lambda: len(function(images))

    return race(
        {"compiled": with_torch(compiled), "eager": with_torch(hog_target), "skimage.feature.hog": with_skimage}
    )


def masks(arguments: argparse.Namespace) -> Rates:
    """Masks of 14x14 a second, in batches of 32 and 256."""
    keys = torch.randint(0, 2**62, (256,))
    return race({f"batch of {n}": partial(lambda n: len(block_masks(keys[:n])), n) for n in (256, 32)})
