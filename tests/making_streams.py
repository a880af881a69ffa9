"""Tars of grey images without a manifest, and what `data.mode=stream` reads of them."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import torch
from launching import small_recipe
from PIL import Image

from pipeline.data.batch import Batch
from pipeline.data.stream import StreamData
from pipeline.data.training_data import Part


def grey(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (48, 40), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, images: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in images.items():
            for suffix, content in ((".png", data), (".cls", b"0")):
                member = tarfile.TarInfo(name + suffix)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def stream(urls: str, rank: int = 0, world_size: int = 1, seed: int = 0, **data: object) -> StreamData:
    overrides = [
        f"run.seed={seed}",
        "data.mode=stream",
        "data.stream_samples=48",
        "data.read_threads=2",
        "data.stream_buffer=8",
    ]
    overrides += [f"data.{key}={value}" for key, value in data.items()]
    recipe = small_recipe(Path("unused"), Path("unused"), *overrides)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"shards": urls})})
    return StreamData(recipe.data, Part(16, 8, seed, torch.device("cpu"), rank, world_size))


def seen(data: StreamData, everything: set[int]) -> set[int]:
    """Return the images of a stream until these have occurred; one thread may be far ahead of the others."""
    found = set[int]()
    for batch in data.batches(0, 3000):
        found.update(numbers(iter([batch])))
        if found >= everything:
            break
    return found


def numbers(batches: Iterator[Batch]) -> list[int]:
    """Return the numbers of images, from their grey."""
    return [round(float(image.float().mean()) / 2) for batch in batches for image in batch.inputs]
