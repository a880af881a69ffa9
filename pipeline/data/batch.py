"""Encoded samples -> batches on the device, with the bad samples taken out of the loss."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from pipeline.data.decode.decoder import Crops, chosen, decoder_for
from pipeline.data.quarantine import BadRowLimit, BadSample
from pipeline.data.reader import Sample
from pipeline.data.request import Request
from pipeline.data.settings import Data
from pipeline.device import to_device

DEPTH = 2  # batches being decoded


@dataclass(frozen=True)
class Batch:
    """A micro-batch of one rank on its device."""

    request: Request
    inputs: Tensor  # uint8 (n, 3, size, size), black where the sample is bad; see `Decoded` for its memory
    keys: Tensor  # int64 (n,): seeds of what is drawn for each sample from here on, such as its mask
    weights: Tensor  # float32 (n,): 0 for what must not count, padding and bad samples
    bad: list[BadSample]


class Batcher:
    """Decodes what was read, in order.

    Args:
        data: crop size, threads, and how many bad samples to put up with.
        micro_batch: images in a batch.
        device: where batches go.
        remedy: what to do about bad samples.

    Attributes:
        notes: what an operator should know, a line each.

    Raises:
        DataError: the GPU cannot decode.
    """

    def __init__(self, data: Data, micro_batch: int, device: torch.device, remedy: str) -> None:
        self._device = device
        self._decoder = decoder_for(device, micro_batch, data.image_size, data.decode_threads, data.hw_decoder_load)
        self._bad_row = BadRowLimit(data.bad_in_a_row, remedy)
        self.notes: list[str] = []
        if device.type == "cuda":
            self.notes.append(f"the GPU decodes {chosen(device, data.hw_decoder_load)}")

    def close(self) -> None:
        """End the threads that decode."""
        self._decoder.close()

    def batches(self, read: Iterable[tuple[Request, list[Sample]]]) -> Iterator[Batch]:
        """A batch for each request and what was read for it, in order.

        Raises:
            TooManyBad: too many samples in a row were bad.
        """
        read = iter(read)
        decoding: deque[tuple[Request, dict[int, str]]] = deque()
        while True:
            for request, samples in islice(read, DEPTH - len(decoding)):
                unread = {place: why for place, why in enumerate(samples) if isinstance(why, str)}
                encoded = [None if isinstance(sample, str) else sample for sample in samples]
                self._decoder.feed(Crops(encoded, request.boxes, request.flips))
                decoding.append((request, unread))
            if not decoding:
                return
            request, unread = decoding.popleft()
            decoded = self._decoder.take()
            problems = unread | decoded.problems
            bad = [
                BadSample(request.step, int(request.ids[place]), problems[place]) if place in problems else None
                for place in range(len(request.ids))
            ]
            self._bad_row.check(bad)
            weights = request.weights.copy()
            weights[list(problems)] = 0
            yield Batch(
                request,
                decoded.images,
                to_device(torch.from_numpy(request.keys), self._device),
                to_device(torch.from_numpy(weights), self._device),
                [sample for sample in bad if sample],
            )
