"""The checks of `scripts/bench.py gpu` can fail: the faults that they have to find are planted."""

import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from launching import CHECKOUT
from torch.profiler import record_function

sys.path.insert(0, str(CHECKOUT / "scripts"))  # as for a script there

from benchmarks.gpu import clip_kernels, pixels, videos
from benchmarks.gpu.results import Bench, Check
from benchmarks.gpu.scale import DRY
from benchmarks.gpu.traces import Trace, traced
from benchmarks.gpu.training import from_shards
from benchmarks.gpu.waiting import waiting
from benchmarks.step import Loop
from model.size import ImageSize
from pipeline.data.decode.decoder import Crops, Decoded, decoder_for
from pipeline.data.decode.graphs import Clips
from pipeline.data.decode.video import GpuClipDecoder
from pipeline.masks import cubes_triton

CPU = torch.device("cpu")


@pytest.fixture
def bench(shards: Path) -> Bench:
    return Bench(DRY, shards, shards.with_name("videos"), time.monotonic() + 600)


def test_a_step_that_waits_is_found_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (good, *_) = waiting(bench)
    assert isinstance(good, Check) and good.passed
    step = Loop.step

    def planted(loop: Loop, batches: Iterator[Any]) -> None:
        step(loop, batches)
        get_accelerator().synchronize()

    monkeypatch.setattr(Loop, "step", planted)
    for check in list(waiting(bench))[:3]:
        assert isinstance(check, Check) and not check.passed
        assert check.numbers["recorded"] == [f"{type(get_accelerator()).__name__}.synchronize"] * 2


def test_waits_of_the_traced_thread_only_and_within_steps() -> None:
    def event(name: str, start: float, duration: float, thread: int, category: str = "cuda_runtime") -> dict[str, Any]:
        return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration, "tid": thread, "pid": 1}

    trace = Trace(
        [
            event("a traced step", 0, 100, 7, "user_annotation"),
            event("a traced step", 0, 300, 8, "gpu_user_annotation"),
            event("cudaLaunchKernel", 10, 1, 7),
            event("cudaEventSynchronize", 20, 5, 7),
            event("cudaStreamSynchronize", 20, 5, 8),  # a thread of DALI
            event("cudaDeviceSynchronize", 200, 50, 7),  # after the steps
            event("gemm", 0, 50, 0, "kernel"),
            event("copy", 40, 20, 1, "gpu_memcpy"),
            event("gemm", 80, 20, 0, "kernel"),
            {"ph": "M", "name": "thread_name"},
        ]
    )
    assert trace.waits() == ["cudaEventSynchronize"]
    assert trace.idle() == pytest.approx(0.2)
    assert trace.kernels() == {"gemm": 2}


def test_a_real_trace_knows_its_thread() -> None:
    def step() -> None:
        with record_function("cudaStreamSynchronize"):
            torch.ones(2).sum()

    def beside() -> None:
        other = threading.Thread(target=step)
        other.start()
        other.join()

    assert traced(step, 2, CPU).waits() == ["cudaStreamSynchronize"] * 2
    assert traced(beside, 2, CPU).waits() == []
    assert traced(step, 2, CPU).idle() is None


def test_wrong_pixels_are_found_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unmirrored:
        """Forgets to flip; the third of the three crops is to be."""

        def __init__(self, *arguments: Any) -> None:
            self._decoder = decoder_for(*arguments)

        def feed(self, crops: Crops) -> None:
            self._decoder.feed(Crops(crops.encoded, crops.boxes, 0 * crops.flips))

        def take(self) -> Decoded:
            return self._decoder.take()

    decoders = iter([Unmirrored, decoder_for])
    monkeypatch.setattr(pixels, "decoder_for", lambda *arguments: next(decoders)(*arguments))
    checks = list(pixels.by_kind(bench, 0))
    assert len(checks) == 11
    assert not any(check.passed for check in checks if isinstance(check, Check))


def test_wrong_frames_of_a_video_are_found_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    class Late:
        """Takes the frame after the last one that is wanted."""

        def __init__(self, batch: int, frames: int, size: ImageSize, device: torch.device, threads: int) -> None:
            self._decoder = GpuClipDecoder(batch, frames, size, device, threads)

        def feed(self, clips: Clips) -> None:
            frames = clips.frames.copy()
            frames[:, -1] += 1
            self._decoder.feed(replace(clips, frames=frames))

        def take(self) -> Decoded:
            return self._decoder.take()

        def close(self) -> None:
            self._decoder.close()

    monkeypatch.setattr(videos, "ENCODINGS", {"VP9": videos.ENCODINGS["VP9"]})
    right, wrong = [], []
    for decoder, found in ((GpuClipDecoder, right), (Late, wrong)):
        monkeypatch.setattr(videos, "GpuClipDecoder", decoder)
        with tempfile.TemporaryDirectory() as folder:
            here = replace(bench, videos=Path(folder) / "videos")
            found += [result for result in videos.exact_frames(here) if isinstance(result, Check)]
    assert [check.passed for check in right] == [True]
    assert [check.passed for check in wrong] == [False]
    assert wrong[0].numbers["found"][-1] == wrong[0].numbers["wanted"][-1] + 1


def test_masks_of_another_size_are_found_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cubes_triton, "masked_cells", lambda grid, ratio: 150)
    (check, _) = clip_kernels.cubes(bench)
    assert isinstance(check, Check) and not check.passed and check.numbers["different"] == 8


def test_pixels_that_change_during_a_step_are_found_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Loop.step

    def overwriting(loop: Loop, batches: Iterator[Any]) -> None:
        images, keys = next(batches)
        step(loop, iter([(images, keys)]))
        images[0, 0, 0, 0] += 1

    monkeypatch.setattr(Loop, "step", overwriting)
    (check,) = (found for found in from_shards(bench, 0) if isinstance(found, Check))
    assert not check.passed and check.numbers == {"images": 4, "wrong": 2}
