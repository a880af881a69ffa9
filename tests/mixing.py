"""Small data sets to mix, and the settings that mix them."""

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.settings import Data
from shards.build import build

BATCHES = {"image_size": 32, "decode_threads": 1, "read_threads": 1, "lanes": 4, "block": 8}


def grey_shards(folder: Path, name: str, greys: range, samples_per_shard: int = 5) -> Path:
    """Build shards of noisy images around these greys, so that what is read can be recognised."""
    rng = np.random.default_rng(greys.start)
    (folder / name).mkdir(parents=True)
    for grey in greys:
        noise = rng.integers(-8, 9, (40, 48, 3)) + grey
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / name / f"{grey:03d}.png")
    build(folder / name, folder / f"{name}-shards", samples_per_shard=samples_per_shard, workers=1)
    return folder / f"{name}-shards"


def mixed(sets: dict[str, Path | str], weights: dict[str, float] | None = None) -> str:
    """Return the override that mixes data sets."""
    weighted = {name: f", weight: {weight}" for name, weight in (weights or {}).items()}
    inner = ", ".join(f"{name}: {{shards: {root}{weighted.get(name, '')}}}" for name, root in sets.items())
    return f"data.mixture={{{inner}}}"


def settings(sets: dict[str, Path], weights: dict[str, float] | None = None, **changes: object) -> Data:
    """Return settings of such a mixture."""
    mixture = {name: {"shards": str(root), "weight": (weights or {}).get(name)} for name, root in sets.items()}
    return Data.model_validate({"mixture": mixture, **BATCHES, **changes})
