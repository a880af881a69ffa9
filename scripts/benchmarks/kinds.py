"""Compare the five kinds of target: the cost of computing those of an image's masked patches."""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
from timm.models import save_for_hf

from benchmarks.figures import Figure
from benchmarks.hardware import synchronise
from benchmarks.racing import compare, race
from model.dvae import DvaeEncoder
from model.layout import Layout, make_mask
from pipeline.masks.blocks import block_masks
from pipeline.targets.hog import hog_target
from pipeline.targets.registry import checked
from pipeline.targets.settings import TargetSettings
from pipeline.targets.target import Computing, Predictions
from pipeline.targets.tokens.words import write_words

PATCH = 16
WORDS = 256


def kinds(size: int, device: torch.device, images: int, teacher: str, classifier: str) -> list[Figure]:
    """Compute the targets of random images in fp32, by networks with random weights, which cost the same.

    Args:
        size: side of the images, a multiple of 16.
        images: images per batch.
        teacher: teacher of the features, a timm transformer.
        classifier: classifier of the labels, any in timm.
    """
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8, device=device)
    grid = Layout(1, size // PATCH, size // PATCH)
    mask = make_mask(block_masks(torch.arange(images, device=device), (grid.rows, grid.columns)), grid)
    predictions, computing = Predictions(grid, (1, PATCH, PATCH)), Computing(torch.float32, device, compile=True)
    with tempfile.TemporaryDirectory() as scratch:
        settings = _settings(Path(scratch), teacher, classifier)
        targets = {name: checked(of).build(of, predictions, computing) for name, of in settings.items()}

    def describe(name: str) -> int:
        targets[name].describe(pixels, mask)
        synchronise(device)
        return images

    contestants: dict[str, Callable[[], int]] = {name: partial(describe, name) for name in targets}
    rates = race(contestants)
    return [
        compare(f"targets of the masked patches, {size} px", "images/s", rates),
        *(Figure(f"CPU time of {name}", "ms an image", _cpu_ms(run) / images) for name, run in contestants.items()),
    ]


def _cpu_ms(run: Callable[[], int]) -> float:
    """Return the least processor time of this process over three runs, in milliseconds."""
    times = []
    for _ in range(3):
        begin = time.process_time()
        run()
        times.append(1e3 * (time.process_time() - begin))
    return min(times)


def _settings(scratch: Path, teacher: str, classifier: str) -> dict[str, TargetSettings]:
    for name in {teacher, classifier}:
        save_for_hf(timm.create_model(name), str(scratch / name), safe_serialization=True)
    torch.save(DvaeEncoder().state_dict(), scratch / "dvae.pth")
    patches = hog_target(torch.randint(0, 256, (8, 3, 224, 224), dtype=torch.uint8)).flatten(0, 1)
    write_words(scratch / "words", patches[:WORDS], TargetSettings(), {"target.kind": "hog"}, {})
    return {
        "hog": TargetSettings(),
        "pixels": TargetSettings(kind="pixels"),
        f"tokens, {WORDS} words of HOG": TargetSettings(kind="tokens", tokenizer=scratch / "words"),
        "tokens, DALL-E's dVAE": TargetSettings(kind="tokens", tokenizer=scratch / "dvae.pth"),
        f"features, {teacher}": TargetSettings(kind="features", teacher=str(scratch / teacher)),
        f"labels, {classifier}": TargetSettings(kind="labels", teacher=str(scratch / classifier)),
    }
