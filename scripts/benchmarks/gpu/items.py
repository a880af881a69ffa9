"""The list of `scripts/bench.py gpu`, by importance: correctness before speed; images, then videos."""

import re
from dataclasses import dataclass
from functools import partial

from benchmarks.gpu.clip_kernels import clip_kernel, clip_kernel_time, cubes
from benchmarks.gpu.clip_rates import clip_rates
from benchmarks.gpu.equality import compiled_loss, resumed_run, visible_only
from benchmarks.gpu.kernel import augmented_pixels, fused_kernel, kernel_time, scales_kernel
from benchmarks.gpu.loaders import decoding, loaders, masks_alone
from benchmarks.gpu.machine import machine_facts
from benchmarks.gpu.pixels import bad_image, by_kind, decodes_itself
from benchmarks.gpu.results import Part
from benchmarks.gpu.training import (
    base,
    from_shards,
    large,
    modes,
    mvit,
    mvit_from_shards,
    recomputing,
    stages,
    tubelets,
)
from benchmarks.gpu.videos import bad_video, exact_frames
from benchmarks.gpu.waiting import waiting
from pipeline.settings import ConfigError


@dataclass(frozen=True)
class Process:
    """Parts that share a process, and usually a model, with the seconds that they may take."""

    seconds: float
    parts: list[Part]


PROCESSES = [
    Process(30, [Part(0, "machine", machine_facts)]),
    Process(
        50,
        [
            Part(1, "the GPU decodes", partial(decodes_itself, load=0)),
            Part(1, "pixels", partial(by_kind, load=0)),
            Part(1, "bad image", bad_image),
        ],
    ),
    Process(
        40,
        [
            Part(1, "the JPEG hardware decodes", partial(decodes_itself, load=1)),
            Part(1, "pixels of the JPEG hardware", partial(by_kind, load=1)),
        ],
    ),
    Process(
        50,
        [
            Part(2, "kernel", fused_kernel),
            Part(2, "kernel of scales", scales_kernel),
            Part(2, "time of the kernel", kernel_time),
            Part(2, "augmentation", augmented_pixels),
        ],
    ),
    Process(
        110,
        [
            Part(3, "waiting", waiting),
            Part(4, "compiled loss", compiled_loss),
            Part(4, "resumed run", resumed_run),
        ],
    ),
    Process(60, [Part(4, "visible patches only", visible_only)]),
    Process(170, [Part(5, "ViT-B", base), Part(6, "ViT-B from shards", partial(from_shards, load=0))]),
    Process(80, [Part(7, "loaders", loaders), Part(7, "masks", masks_alone)]),
    Process(150, [Part(8, "ViT-L", large)]),
    Process(80, [Part(9, "from shards by the JPEG hardware", partial(from_shards, load=1))]),
    Process(50, [Part(9, "decoding", decoding)]),
    Process(80, [Part(9, "ZeRO stages", stages)]),
    Process(120, [Part(9, "recomputed activations", recomputing)]),
    Process(250, [Part(9, "compiler modes", modes)]),
    Process(60, [Part(10, "frames of videos", exact_frames), Part(10, "bad video", bad_video)]),
    Process(
        40,
        [
            Part(11, "kernel of clips", clip_kernel),
            Part(11, "time of the kernel of clips", clip_kernel_time),
            Part(11, "cube masks", cubes),
        ],
    ),
    Process(60, [Part(12, "clips", clip_rates)]),
    Process(200, [Part(13, "MViTv2-S", mvit), Part(13, "MViTv2-S from shards", mvit_from_shards)]),
    Process(100, [Part(14, "ViT-B on tubelets", tubelets)]),
]
PARTS = {part.name: part for process in PROCESSES for part in process.parts}


def items_of(text: str) -> set[int]:
    """Parse "0-4,7" as 0 to 4 and 7. Raises ConfigError for numbers that are not in the list."""
    known = {part.item for part in PARTS.values()}
    items: set[int] = set()
    for piece in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", piece)
        chosen = set(range(int(match[1]), int(match[2] or match[1]) + 1)) if match else set()
        if not chosen or not chosen <= known:
            raise ConfigError(f"--items {text}: give some of {min(known)} to {max(known)}, like 0-4 or 5,8")
        items |= chosen
    return items
