"""Small labelled data sets for the tests: noisy images in the colours of their classes."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = {"blue": (40, 60, 200), "green": (40, 200, 60), "red": (200, 40, 60)}


def labelled_shards(folder: Path, parts: Mapping[str, Mapping[str, int]]) -> dict[str, Path]:
    """Shards of 16 samples of each part; `parts` says how many images of which class, in the order they are drawn."""
    from shards.build import build

    rng = np.random.default_rng(0)
    for part, counts in parts.items():
        for name, count in counts.items():
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                noise = rng.normal(CLASSES[name], 90, (48, 40, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(noise).save(folder / part / name / f"{index}.png")
        build(folder / part, folder / f"{part}-shards", samples_per_shard=16, workers=1)
    return {part: folder / f"{part}-shards" for part in parts}
