"""Decoders in threads of their own: whoever trains hands batches over, gets them in order, and is told of errors."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import CHECKOUT
from test_data import by_sample, training_batches

from model.size import ImageSize
from pipeline.data.decode import queues
from pipeline.data.decode.decoder import CpuDecoder, Crops, GpuDecoder
from pipeline.data.decode.graphs import Decoding, Graph
from pipeline.data.decode.selftest import image
from pipeline.data.errors import DataError
from shards.manifest import Manifest

CPU = torch.device("cpu")
SIZE = ImageSize(32, 48)
DECODERS: dict[str, Callable[[int], CpuDecoder | GpuDecoder]] = {
    "CPU": lambda most: CpuDecoder(most, SIZE, 1),
    "GPU": lambda most: GpuDecoder(most, SIZE, CPU, 1, Decoding()),  # its graph and thread, with a CPU to decode
}


def crops(seed: int, images: int = 2) -> Crops:
    """Pictures that differ from seed to seed."""
    boxes = np.tile(np.array([[seed % 7, 3, 200, 300]], np.int32), (images, 1))
    encoded = [image(seed * images + place) for place in range(images)]
    return Crops([*encoded], boxes, np.full(images, seed % 2, np.int32))


@contextmanager
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Block the feeding of graphs until the event is set."""
    go, feed = threading.Event(), Graph.feed

    def wait(graph: Graph, crops: Crops) -> None:
        assert go.wait(60)
        feed(graph, crops)

    monkeypatch.setattr(Graph, "feed", wait)
    try:
        yield go
    finally:
        go.set()


@pytest.mark.parametrize("kind", DECODERS)
def test_batches_come_in_order_whatever_is_under_way(kind: str) -> None:
    """Two and three at once, for long enough that a race would show, and each alone."""
    decoder, alone = DECODERS[kind](2), DECODERS[kind](2)
    batches = [crops(seed) for seed in range(8)] * 10
    for batch in batches[:2]:
        decoder.feed(batch)
    for number, batch in enumerate(batches):
        for following in batches[number + 2 : number + 3]:
            decoder.feed(following)
        found = decoder.take()
        alone.feed(batch)
        assert not found.problems and torch.equal(found.images, alone.take().images)
    decoder.close()
    alone.close()


@pytest.mark.parametrize("kind", DECODERS)
def test_handing_a_batch_over_does_not_wait_for_its_bytes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = DECODERS[kind](2)
    with held(monkeypatch) as go:
        decoder.feed(crops(0))  # returns, though nothing can be fed
        taking = threading.Thread(target=decoder.take)
        taking.start()
        taking.join(0.2)
        assert taking.is_alive()
        go.set()
        taking.join(60)
        assert not taking.is_alive()
    decoder.close()


@pytest.mark.parametrize("kind", DECODERS)
def test_an_error_of_the_thread_is_raised_where_the_batch_is_taken(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, feed = DECODERS[kind](2), Graph.feed

    def fail(graph: Graph, crops: Crops) -> None:
        raise DataError("no such batch; feed another")

    decoder.feed(crops(0))
    decoder.take()
    monkeypatch.setattr(Graph, "feed", fail)
    decoder.feed(crops(1))
    with pytest.raises(DataError, match=r"^no such batch; feed another$"):
        decoder.take()
    monkeypatch.setattr(Graph, "feed", feed)
    decoder.feed(crops(2))
    assert decoder.take().images.any()
    decoder.close()


@pytest.mark.parametrize("kind", DECODERS)
def test_close_ends_the_threads_and_drops_what_was_not_taken(kind: str) -> None:
    before = set(threading.enumerate())
    decoder = DECODERS[kind](2)
    for seed in range(20):
        decoder.feed(crops(seed))
    decoder.take()
    started = set(threading.enumerate()) - before
    assert started
    begin = time.monotonic()
    decoder.close()
    assert time.monotonic() - begin < queues._ENDING / 2
    for thread in started:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("kind", DECODERS)
def test_close_lets_a_batch_end_and_begins_no_other(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, begun, feed = DECODERS[kind](2), [], Graph.feed

    def note(graph: Graph, crops: Crops) -> None:
        begun.append(crops)
        feed(graph, crops)

    monkeypatch.setattr(Graph, "feed", note)
    with held(monkeypatch) as go:
        for seed in range(5):
            decoder.feed(crops(seed))
        closing = threading.Thread(target=decoder.close)
        closing.start()
        closing.join(0.5)
        assert closing.is_alive() and not begun
        go.set()
        closing.join(60)
        assert not closing.is_alive() and len(begun) == 1


@pytest.mark.parametrize("kind", DECODERS)
def test_close_does_not_wait_for_what_hangs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "_ENDING", 0.5)
    decoder = DECODERS[kind](2)
    with held(monkeypatch):
        decoder.feed(crops(0))
        begin = time.monotonic()
        decoder.close()
        assert 0.4 < time.monotonic() - begin < 30


def test_a_process_ends_with_batches_under_way() -> None:
    program = """
import sys; sys.path[:0] = ["tests", "tests/data"]
from test_feeding import DECODERS, crops
for make in DECODERS.values():
    decoder = make(2)
    for seed in range(4):
        decoder.feed(crops(seed))
    decoder.take()
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, timeout=120, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("regions", [True, False])
def test_the_loader_serves_the_same_samples_by_the_graph_of_a_gpu(
    shards: Path, monkeypatch: pytest.MonkeyPatch, regions: bool
) -> None:
    """DALI's resize and torch's differ in rounding; samples, order, flips and everything else are the same."""
    manifest = Manifest.load(shards)
    ours = by_sample(training_batches(shards, manifest, micro_batch=8, steps=6, rank=1, ranks=3))
    decoding = Decoding(regions=regions)

    def of_a_gpu(device: torch.device, most: int, size: ImageSize, *others: int) -> GpuDecoder:
        return GpuDecoder(most, size, CPU, 1, decoding)

    monkeypatch.setattr("pipeline.data.batch.decoder_for", of_a_gpu)
    theirs = by_sample(training_batches(shards, manifest, micro_batch=8, steps=6, rank=1, ranks=3))
    assert theirs.keys() == ours.keys()
    for sample, (pixels, key) in ours.items():
        assert theirs[sample][1] == key
        assert (theirs[sample][0].float() - pixels.float()).abs().mean() < 1
