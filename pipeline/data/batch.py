"""Assemble decoded samples into batches on the device; bad samples get a loss weight of zero."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from pipeline.data.decode.decoder import Crops, Decoder, chosen, decoder_for
from pipeline.data.decode.graphs import Clips
from pipeline.data.decode.jpegs import JpegClipDecoder, JpegClips
from pipeline.data.decode.video import clip_decoder_for
from pipeline.data.order import Int64s
from pipeline.data.quarantine import BadRowLimit, BadSample
from pipeline.data.reader import Sample
from pipeline.data.request import Request
from pipeline.data.settings import Data
from pipeline.device import to_device
from shards.tables.videos import Videos

DEPTH = 2  # batches being decoded


@dataclass(frozen=True)
class Batch:
    """A micro-batch of one rank on its device.

    Attributes:
        request: the samples and how they were cropped.
        inputs: uint8 (n, 3, H, W), for a model of clips (n, 3, T, H, W), where T is 1 for images; black where the
            sample is bad; see `Decoded` for the memory format.
        keys: int64 (n,), seeds of each input's later randomness, such as its mask.
        weights: float32 (n,), loss weights, 0 for padding and bad samples.
        bad: the bad samples, each once.
    """

    request: Request
    inputs: Tensor
    keys: Tensor
    weights: Tensor
    bad: list[BadSample]


class Batcher:
    """Decodes the samples that were read, in order.

    Args:
        data: crop size, threads, and the limit of bad samples.
        micro_batch: inputs per batch.
        device: the device of the batches.
        remedy: the advice on bad samples, for messages.
        repeats: inputs per sample.
        media: the media of the samples.
        videos: the facts of the videos; None: there are only images.
        numbers: maps samples to the numbers of their data sets; None: there is one data set.

    Attributes:
        notes: lines for the operator.

    Raises:
        DataError: the GPU cannot decode, or such videos cannot be decoded here.
    """

    def __init__(
        self,
        data: Data,
        micro_batch: int,
        device: torch.device,
        remedy: str,
        repeats: int = 1,
        media: Collection[str] = ("image",),
        videos: Videos | None = None,
        numbers: Callable[[Int64s], Int64s] | None = None,
    ) -> None:
        self._device, self._videos = device, videos
        self._of_clips = data.clip is not None
        self._decoders: dict[str, Decoder] = {
            medium: _decoder_for(data, micro_batch // repeats, device, repeats, videos if medium == "video" else None)
            for medium in sorted(media)
        }
        self._bad_row, self._numbers = BadRowLimit(data.bad_in_a_row, remedy), numbers
        self.notes: list[str] = []
        if device.type == "cuda" and ("image" in media or (videos is not None and videos.jpegs is not None)):
            self.notes.append(f"the GPU decodes {chosen(device, data.hw_decoder_load)}")

    def close(self) -> None:
        """Stop the decoding threads."""
        for decoder in self._decoders.values():
            decoder.close()

    def batches(self, read: Iterable[tuple[Request, list[Sample]]]) -> Iterator[Batch]:
        """Yield a batch for each request and its samples, in order.

        Raises:
            TooManyBad: too many samples in a row were bad.
        """
        read = iter(read)
        decoding: deque[tuple[Request, dict[int, str]]] = deque()
        while True:
            for request, samples in islice(read, DEPTH - len(decoding)):
                unread = {place: why for place, why in enumerate(samples) if isinstance(why, str)}
                self._decoders[request.medium].feed(self._crops(request, samples))
                decoding.append((request, unread))
            if not decoding:
                return
            request, unread = decoding.popleft()
            decoded = self._decoders[request.medium].take()
            problems = unread | decoded.problems
            bad = [
                BadSample(request.step, int(request.ids[place]), problems[place]) if place in problems else None
                for place in range(len(request.ids))
            ]
            self._bad_row.check(bad, None if self._numbers is None else self._numbers(request.ids).tolist())
            weights = request.weights.copy()
            weights.reshape(len(request.ids), -1)[list(problems)] = 0
            yield Batch(
                request,
                decoded.images.unsqueeze(2) if self._of_clips and request.medium == "image" else decoded.images,
                to_device(torch.from_numpy(request.keys), self._device),
                to_device(torch.from_numpy(weights), self._device),
                [sample for sample in bad if sample],
            )

    def _crops(self, request: Request, samples: list[Sample]) -> Crops:
        encoded = [None if isinstance(sample, str) else sample for sample in samples]
        if self._videos is None or request.frames is None:
            return Crops(encoded, request.boxes, request.flips)
        if (jpegs := self._videos.jpegs) is not None:
            sizes = [jpegs.sizes(sample) for sample in request.ids.tolist()]
            return JpegClips(encoded, request.boxes, request.flips, request.frames, sizes)
        clips = zip(request.input_ids.tolist(), request.frames, strict=True)
        stamps = np.stack([self._videos.time_stamps(sample)[frames] for sample, frames in clips])
        return Clips(encoded, request.boxes, request.flips, request.frames, stamps)


def _decoder_for(data: Data, samples: int, device: torch.device, repeats: int, videos: Videos | None) -> Decoder:
    size, threads = data.size, data.decode_threads
    if videos is None or data.clip is None:
        return decoder_for(device, samples, size, threads, data.hw_decoder_load, repeats)
    if videos.jpegs is not None:
        frames = samples * repeats * data.clip.frames
        return JpegClipDecoder(decoder_for(device, frames, size, threads, data.hw_decoder_load))
    return clip_decoder_for(device, samples, data.clip.frames, size, threads, repeats, videos.codecs)
