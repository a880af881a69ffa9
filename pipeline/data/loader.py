"""Load the batches of a data set with a manifest: reading runs ahead of decoding, decoding ahead of training.

plan -> request (ids, crops, flips, frames) -> reader (bytes) -> decoder (pixels on the device) -> batch
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

import torch

from pipeline.data.batch import Batch, Batcher
from pipeline.data.cache.node import NodeCache
from pipeline.data.data_sets import DataSets, check_are_images, check_validation_images
from pipeline.data.errors import DataError
from pipeline.data.quarantine import TooManyBad
from pipeline.data.reader import Reader, Sample
from pipeline.data.request import Request
from pipeline.data.settings import Data
from shards.manifest import Manifest
from shards.storage import Traffic, printable_url

AHEAD = 4  # batches being read beyond those being decoded


class Loader:
    """Reads and decodes one data set for one rank.

    Args:
        manifest: the data set.
        data: crop size, threads, and the limit of bad samples.
        micro_batch: inputs per batch.
        device: the device of the batches.
        cache: this node's cache of remote shards.
        traffic: counts the requests of remote storage.
        repeats: inputs per sample in the requests.
        sets: the data sets of a run, which `manifest` joins; None: it is of samples that are not trained on.
        single_frames: whether images become clips of one frame, whatever `data.frames` is.

    Attributes:
        notes: see `Batcher`.

    Raises:
        DataError: the samples are not of the kind in `data`, or cannot be decoded or read here.
    """

    def __init__(
        self,
        manifest: Manifest,
        data: Data,
        micro_batch: int,
        device: torch.device,
        cache: NodeCache | None = None,
        traffic: Traffic | None = None,
        repeats: int = 1,
        sets: DataSets | None = None,
        single_frames: bool = False,
    ) -> None:
        joined = sets is not None and sets.of_both_media
        check_kind(manifest, data, single_frames, joined)
        self._reader = Reader(manifest, data.read_threads, data.requests, data.deadline, cache, traffic)
        self._cache = cache
        self._trains = sets is not None
        remedy = sets.remedy if sets else f"run `maskfeat-shards verify` on {manifest.root} and restore what it names"
        numbers = sets.numbers if sets else None
        self._batcher = Batcher(data, micro_batch, device, remedy, repeats, manifest.media, manifest.video, numbers)
        self.notes = self._batcher.notes

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Yield batches in the order of the requests. Finish one iteration before you start another.

        Raises:
            TooManyBad: too many training samples in a row cannot be read or decoded.
            DataError: likewise of other samples, or the storage is unreachable.
        """
        try:
            yield from self._batcher.batches(self._read(iter(requests)))
        except TooManyBad as error:
            if self._trains:
                raise
            raise DataError(str(error)) from error  # which does not go to a run's quarantine

    def counters(self) -> dict[str, float]:
        """Return the counters of remote storage and the cache in this process; empty for local shards."""
        return self._reader.counters() | (self._cache.counters() if self._cache else {})

    def close(self) -> None:
        """Stop the decoding threads, and release the cache for other processes of this node."""
        self._batcher.close()
        if self._cache:
            self._cache.close()

    def _read(self, requests: Iterator[Request]) -> Iterator[tuple[Request, list[Sample]]]:
        reading = deque((one, self._reader.submit(one.ids, one.frames)) for one in islice(requests, AHEAD))
        while reading:
            request, samples = reading.popleft()
            if self._cache:
                self._cache.advance(request.step)
            reading.extend((one, self._reader.submit(one.ids, one.frames)) for one in islice(requests, 1))
            yield request, samples.result()


def check_kind(manifest: Manifest, data: Data, single_frames: bool = False, joined: bool = False) -> None:
    """Raise DataError where the samples do not give inputs of the kind in the settings.

    Args:
        manifest: the manifest of a data set, or of several mixed ones.
        data: the settings.
        single_frames: see `Loader`.
        joined: whether it joins data sets of images and data sets of videos.
    """
    root, clip = printable_url(manifest.root), data.clip
    if len(manifest.media) > 1 and not joined:
        kinds = " and ".join(f"{kind}s" for kind in sorted(manifest.media))
        raise DataError(f"{root}: has {kinds}, but a batch has only one kind: build a data set of each")
    if manifest.video is not None and clip is None:
        raise DataError(f"{root}: has videos: set data.frames to the number of frames that the model sees of each")
    if manifest.video is None and clip is not None and clip.frames > 1 and not single_frames:
        raise DataError(
            f"{root}: has images, and data.frames={clip.frames} asks for clips of videos: give videos, or set "
            "data.frames=1 to train a video model on images"
        )


def open_training(data: Data) -> DataSets:
    """Return the training sets of the settings. Raises ShardError or DataError where a run cannot use them."""
    sets = DataSets(data)
    check_kind(sets.manifest, data, sets.of_both_media, sets.of_both_media)
    return sets


def open_validation(shards: str, data: Data, of_both_media: bool, images: bool) -> Manifest:
    """Return the manifest of a validation set. Raises ShardError or DataError where a run cannot use it.

    Args:
        shards: its folder or URL.
        data: the settings.
        of_both_media: whether the run is on images and videos.
        images: whether it is that of `data.validation_images`.
    """
    if images:
        check_validation_images(data, of_both_media)
    manifest = Manifest.load(shards)
    check_kind(manifest, data, of_both_media)
    if images:
        check_are_images(manifest)
    return manifest
