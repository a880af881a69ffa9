"""Other ways to load images, each with the images of one of our data sets."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from pipeline.data.reader import Encoded, Reader
from shards.manifest import Manifest

BATCH = 32
CROP_SCALE = (0.5, 1.0)
_CHUNK = 25 * 2**20  # bytes of a peer's own shards

Start = Callable[[], Iterator[Any]]  # a fresh iterator over batches that does not end early


def peers(manifest: Manifest, workers: int, size: int, scratch: Path) -> dict[str, Start]:
    """Return ways to load crops of `size` pixels, by name. Those that are not installed are skipped, with a message.

    Copies of the images in the peers' own formats are written to `scratch`.
    """
    on_images, on_tensors = _transforms(size)
    found = {
        "webdataset + torchvision on Pillow images": _webdataset(manifest, workers, on_images),
        "webdataset + torchvision on tensors": _webdataset(manifest, workers, on_tensors),
    }
    for name, make in {"MosaicML Streaming": _mosaicml, "LitData": _litdata}.items():
        try:
            found[f"{name} + torchvision on tensors"] = make(manifest, workers, on_tensors, scratch / name)
        except ImportError as error:
            print(f"{name} is left out: {error}")
    return found


def webdataset_on_tensors(manifest: Manifest, workers: int, size: int, batch: int) -> Start:
    """Load by webdataset, with the faster of the two transforms."""
    return _webdataset(manifest, workers, _transforms(size)[1], batch)


def _transforms(size: int) -> tuple[v2.Compose, v2.Compose]:
    """Return random crops and flips of Pillow images by Pillow, and by torch on tensors."""
    resized = v2.RandomResizedCrop(size, CROP_SCALE, antialias=True, interpolation=v2.InterpolationMode.BICUBIC)
    flip, to_tensor = v2.RandomHorizontalFlip(), v2.PILToTensor()
    return v2.Compose([resized, flip, to_tensor]), v2.Compose([to_tensor, resized, flip])


def _webdataset(manifest: Manifest, workers: int, transform: v2.Compose, batch: int = BATCH) -> Start:
    import webdataset as wds

    tars = [manifest.shard_location(shard) for shard in range(len(manifest.counts))]

    def start() -> Iterator[Any]:
        peer = wds.WebDataset(tars, shardshuffle=False, nodesplitter=None, workersplitter=None).repeat()
        peer = peer.shuffle(100).decode("pilrgb").to_tuple("jpg;png").map_tuple(transform).batched(batch)
        return iter(DataLoader(peer, batch_size=None, num_workers=workers, prefetch_factor=2))

    return start


def _mosaicml(manifest: Manifest, workers: int, transform: v2.Compose, scratch: Path) -> Start:
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    with MDSWriter(out=str(scratch), columns={"image": "bytes"}, size_limit=_CHUNK) as writer:
        for image in _images(manifest):
            writer.write({"image": image.tobytes()})

    class Crops(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: Any) -> torch.Tensor:
            return _crop(super().__getitem__(at)["image"], transform)

    clean_stale_shared_memory()
    dataset = Crops(local=str(scratch), shuffle=True, batch_size=BATCH)

    def start() -> Iterator[Any]:
        while True:
            yield from DataLoader(dataset, BATCH, num_workers=workers, prefetch_factor=2, drop_last=True)

    return start


def _litdata(manifest: Manifest, workers: int, transform: v2.Compose, scratch: Path) -> Start:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import Cache

    cache = Cache(str(scratch), chunk_bytes=_CHUNK)
    for index, image in enumerate(_images(manifest)):
        cache[index] = {"image": image.tobytes()}
    cache.done()
    cache.merge()

    class Crops(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: Any) -> torch.Tensor:
            return _crop(super().__getitem__(at)["image"], transform)

    def start() -> Iterator[Any]:
        dataset = Crops(input_dir=str(scratch), shuffle=True, drop_last=True)
        while True:
            yield from StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, prefetch_factor=2)

    return start


def _images(manifest: Manifest) -> Iterator[Encoded]:
    reader = Reader(manifest)
    for sample in range(len(manifest)):
        (image,) = reader.submit(torch.tensor([sample]).numpy()).result()
        assert not isinstance(image, str), image
        yield image


def _crop(image: bytes, transform: v2.Compose) -> torch.Tensor:
    crop: torch.Tensor = transform(Image.open(io.BytesIO(image)).convert("RGB"))
    return crop
