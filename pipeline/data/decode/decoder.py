"""Decode images to crops of one size on the device, by NVIDIA DALI.

All randomness is given as numbers (boxes and flips), so a crop's pixels do not depend on its batch, on the order of the
batches or on threads. On a GPU, one DALI graph decodes, crops, resizes and flips. Its hybrid JPEG decoder splits a
batch between the hardware unit and CUDA by position, and the two differ in low bits, so only an `hw_decoder_load` of 0
or 1 keeps this guarantee. On a CPU, DALI decodes the crop and torch resizes it, whose vectorised resize takes a
fraction of the time of DALI's (docs/explanation/benchmarks.md).

Both resize by the cubic filter (a = -0.5), antialiased as in Pillow. Both do all slow work in other threads: the caller
hands a batch over, and waits only for one that is not ready.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function
from torch.utils.dlpack import from_dlpack

from model.size import ImageSize, Sides
from pipeline.data.decode import queues
from pipeline.data.decode.gpu import Choice, Outcome, choose, examine, remembered, selftest
from pipeline.data.decode.graphs import Crops as Crops
from pipeline.data.decode.graphs import Decoding, Graph, image_nodes
from pipeline.data.decode.headers import readable
from pipeline.data.decode.libraries import driver_version, library_versions
from pipeline.data.decode.queues import Decoded as Decoded
from pipeline.data.decode.queues import Decoder as Decoder
from pipeline.data.decode.queues import GraphDecoder, end, hanging, problem, resize_into


class GpuDecoder(GraphDecoder):
    """Decodes images on a CUDA device. See `GraphDecoder`.

    Args:
        batch_size: the most images per batch.
        size: size that crops are resized to: the side of a square, or height and width.
        device, threads: see `GraphDecoder`.
        decoding: the decoder options of the graph.
        repeats: crops per image.
    """

    def __init__(
        self,
        batch_size: int,
        size: Sides,
        device: torch.device,
        threads: int,
        decoding: Decoding,
        repeats: int = 1,
    ) -> None:
        sides = ImageSize.of(size)
        super().__init__(batch_size, (*sides, 3), device, threads, image_nodes(decoding, sides, repeats), readable)


class CpuDecoder:
    """Decodes images on a CPU: its own thread decodes and resizes one batch after the other.

    Args:
        batch_size: the most images per batch.
        size: size that crops are resized to: the side of a square, or height and width.
        threads: threads that decode, and then resize, a batch together.
        repeats: crops per image.
    """

    def __init__(self, batch_size: int, size: Sides, threads: int, repeats: int = 1) -> None:
        self._size = ImageSize.of(size)
        nodes = image_nodes(repeats=repeats)
        self._graph, self._alone = (Graph(most, threads, None, nodes) for most in (batch_size, 1))
        self._resizing = ThreadPoolExecutor(threads, thread_name_prefix="resize")
        self._decoding = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self._fed: deque[Future[Decoded]] = deque()

    def feed(self, crops: Crops) -> None:
        """Queue a batch."""
        self._fed.append(self._decoding.submit(self._decode, crops))

    def take(self) -> Decoded:
        """Return the oldest batch. Raises DataError when decoding hangs."""
        try:
            return self._fed.popleft().result(queues.TIMEOUT)
        except TimeoutError:
            raise hanging() from None

    def close(self) -> None:
        """Stop the threads; batches that were not taken are lost."""
        end(self._decoding, self._fed)
        self._resizing.shutdown(wait=False)

    @record_function("decode")
    def _decode(self, crops: Crops) -> Decoded:
        # Copied by NumPy: torch would start its own thread pool in each of our threads
        images = np.zeros((len(crops.boxes), 3, *self._size), dtype=np.uint8)
        crops, problems = readable(crops)
        places = crops.readable
        try:
            pieces = self._pieces(self._graph, crops, places) if places else {}
        except RuntimeError:  # DALI drops the whole batch and continues with the next
            pieces = self._rescued(crops, places, problems)

        def finish(number: int) -> None:
            resize_into(images[number], pieces[number], bool(crops.flips[number]))

        list(self._resizing.map(finish, pieces))
        return Decoded(torch.from_numpy(images), problems)

    def _rescued(self, crops: Crops, places: list[int], problems: dict[int, str]) -> dict[int, Tensor]:
        pieces: dict[int, Tensor] = {}
        for place in places:
            try:
                pieces |= self._pieces(self._alone, crops, [place])
            except RuntimeError as error:
                problems[place] = problem(error)
        return pieces

    @staticmethod
    def _pieces(graph: Graph, crops: Crops, places: list[int]) -> dict[int, Tensor]:
        """Return the crops of the images at `places`, uint8 (height, width, 3) each, by number."""
        graph.feed(crops.of(places))
        return {
            place * crops.repeats + repeat: from_dlpack(images[index])
            for repeat, images in enumerate(graph.take())
            for index, place in enumerate(places)
        }


def decoder_for(
    device: torch.device, batch_size: int, size: ImageSize, threads: int, hw_decoder_load: int, repeats: int = 1
) -> Decoder:
    """Return the image decoder for a device. Raises DataError for a GPU that cannot decode."""
    if device.type == "cuda":
        return GpuDecoder(batch_size, size, device, threads, chosen(device, hw_decoder_load).decoding, repeats)
    return CpuDecoder(batch_size, size, threads, repeats)


@lru_cache
def chosen(device: torch.device, hw_decoder_load: int) -> Choice:
    """Choose how a CUDA device decodes, by tests unless the choice is cached. Raises DataError if it cannot."""
    versions = library_versions()
    on_this_node = {"driver": driver_version(), "GPU": torch.cuda.get_device_name(device), "load": str(hw_decoder_load)}

    def test(decoding: Decoding) -> Outcome:
        return examine(selftest(str(device.index), decoding))

    return remembered(versions | on_this_node, lambda: choose(test, versions, hw_decoder_load))
