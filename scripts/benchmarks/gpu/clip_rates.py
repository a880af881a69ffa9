"""Item 12: measure clips per second from memory and from shards, by NVDEC and by PyAV on the CPU."""

import os
import time
from collections.abc import Iterator
from itertools import islice
from statistics import median

from benchmarks.gpu.results import Bench, Failure, Result
from benchmarks.gpu.videos import clips_of, videos_of
from benchmarks.hardware import synchronise
from benchmarks.racing import compare
from pipeline.data.decode.graphs import Clips
from pipeline.data.decode.queues import Decoder
from pipeline.data.decode.video import CpuClipDecoder, GpuClipDecoder
from pipeline.data.settings import Clip
from shards.manifest import Manifest

_BATCHES = 4


def clip_rates(bench: Bench) -> Iterator[Result]:
    """Measure clips of 16 frames, every 4th, of encoded videos in memory."""
    scale, videos = bench.scale, videos_of(bench)
    cores = 1 if scale.dry else len(os.sched_getaffinity(0))
    size, frames, batch = scale.check_size, scale.clip_frames, scale.clips
    batches = [clips_of(videos, batch, Clip(frames, "stride", 4, None), seed) for seed in range(_BATCHES)]
    decoders: dict[str, Decoder] = {
        "by NVDEC": GpuClipDecoder(batch, frames, size, scale.device, max(1, cores // 2)),
        f"PyAV, {cores} threads": CpuClipDecoder(size, cores),
    }
    rates: dict[str, list[float]] = {}
    for nth in range(1 + scale.rounds):  # the first warms up
        for name, decoder in list(decoders.items()):
            if late := bench.too_late(f"clips {name}, round {nth}", 15):
                yield late
                continue
            try:
                rate = _rate(decoder, batches, bench)
            except Exception as error:
                yield Failure(f"clips {name}", repr(error))
                decoders.pop(name)
                continue
            if nth or scale.dry:
                rates.setdefault(name, []).append(rate)
        medians = {name: median(values) for name, values in rates.items()}
        if medians:
            shown, side = Manifest.load(videos), size.height
            where = f"{frames} frames of {side} px, of videos of {shown.height[0]}x{shown.width[0]}, batches of {batch}"
            yield compare(f"clips decoded from memory, {where}", "clips/s", medians)
            yield compare(
                f"frames of them, {where}", "frames/s", {name: rate * frames for name, rate in medians.items()}
            )
    for decoder in decoders.values():
        decoder.close()


def _rate(decoder: Decoder, batches: list[Clips], bench: Bench) -> float:
    """Return clips per second with two batches in progress, as in training. Raises RuntimeError for bad clips."""
    begin, clips, under_way = time.perf_counter(), 0, 0
    waiting = iter([*batches] * (1 if bench.scale.dry else 2))
    while True:
        for batch in islice(waiting, 2 - under_way):
            decoder.feed(batch)
            under_way += 1
        if not under_way:
            break
        decoded = decoder.take()
        if decoded.problems:
            raise RuntimeError(f"bad clips: {decoded.problems}")
        clips += len(decoded.images)
        under_way -= 1
    synchronise(bench.scale.device)
    return clips / (time.perf_counter() - begin)
