"""Compare a run of two ranks that is disturbed repeatedly at random moments with an undisturbed one.

    PYTHONPATH=tests:. python tests/faults/random_kills.py [--hits 100] [--seed 0] [--within 4] [--clips]

Each life is hit once, after a random time between its start and its end: SIGKILL of one rank or of both, SIGTERM of
one, or SIGSTOP of one until the other gives up. At the end, all lives together must have trained on the plan's samples,
once each, on the same frames where these are videos, and come to the same weights, bit for bit. It takes some minutes
and is not part of the test suite.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from launching import start, trace
from making_videos import encoded, film
from PIL import Image
from ranks import Ranks

from pipeline.checkpoints.checkpoint import newest
from pipeline.data.plan import Plan
from shards.build import build
from shards.manifest import Manifest

STEPS_A_HIT = 10
IMAGES, VIDEOS = 300, 60
BATCH = 16
CLIPS = ["data.image_size=64", "data.frames=4", "data.sampling=stride", "data.stride=2", "data.repeats=2"]


def main() -> int:
    """Return 0 if the runs are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hits", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--within", type=float, default=4.0, help="seconds of a life in which it is hit (%(default)s)")
    parser.add_argument("--clips", action="store_true", help="train on clips of videos")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="random-kills-"))
    (folder / "source").mkdir()
    (_make_videos if arguments.clips else _make_images)(folder / "source")
    shards = folder / "shards"
    build(folder / "source", shards, samples_per_shard=25, workers=1)
    steps = STEPS_A_HIT * arguments.hits
    options = [f"run.max_steps={steps}", "run.save_every=7", "run.log_every=3", "run.keep=2", "run.deadline=8"]
    options += ["run.trace_samples=true", f"optim.epochs={steps}", *(CLIPS if arguments.clips else [])]

    alone = start(shards, folder / "alone", *options)
    assert alone.wait(3600) == [0, 0], alone.said()
    hits: Counter[str] = Counter()
    begin, ends = time.monotonic(), Counter[str]()
    while True:
        ranks = start(shards, folder / "hit", *options)
        hit = rng.choice(["kill a rank", "kill both", "ask one to stop", "stop one"])
        if sum(hits.values()) < arguments.hits:
            time.sleep(rng.uniform(0.3, arguments.within))
            _hit(ranks, hit, rng.randrange(2))
            hits[hit] += 1
        statuses = ranks.wait(300)
        ends[str(statuses)] += 1
        assert None not in statuses, f"a rank hangs after {hit}: {ranks.said()}"
        print(f"{sum(hits.values())}: {hit} -> {statuses}, step {_step(folder / 'hit')}", flush=True)
        if statuses == [0, 0]:
            break

    plan = Plan(Manifest.load(shards).counts, 0, lanes=4)
    traces = [trace(folder / "hit", rank) for rank in (0, 1)]
    samples = BATCH // 2 if arguments.clips else BATCH
    equal_samples = all(
        traces[0][step] + traces[1][step] == plan.batch(step, samples).tolist() for step in range(steps)
    ) and all(len(of_rank) == steps for of_rank in traces)
    equal_traces = all(  # the whole lines, which have the frames of clips
        (folder / "hit" / name).read_text() == (folder / "alone" / name).read_text()
        for name in ("samples-rank0.jsonl", "samples-rank1.jsonl")
    )
    hit_run, alone_run = (newest(folder / run / "checkpoints", report=print) for run in ("hit", "alone"))
    assert hit_run and alone_run
    expected = alone_run.weights()
    equal_weights = all(torch.equal(value, expected[name]) for name, value in hit_run.weights().items())
    print(
        f"{dict(hits)} in {sum(ends.values())} lives of {steps} steps, {time.monotonic() - begin:.0f} s; {dict(ends)}"
    )
    print(
        f"samples equal the plan's: {equal_samples}; traces equal: {equal_traces}; "
        f"weights equal bit for bit: {equal_weights}"
    )
    return 0 if equal_samples and equal_traces and equal_weights else 1


def _make_images(folder: Path) -> None:
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (IMAGES, 48, 48, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{number}.jpg")


def _make_videos(folder: Path) -> None:
    for number in range(VIDEOS):
        (folder / f"{number}.mp4").write_bytes(encoded(film(1 + number, 56, 72, seed=number), g=8, bf=2))


def _hit(ranks: Ranks, hit: str, rank: int) -> None:
    if hit == "kill both":
        ranks.kill()
    elif hit == "kill a rank":
        ranks.signal(rank, signal.SIGKILL)
    elif hit == "ask one to stop":
        ranks.signal(rank, signal.SIGTERM)
    else:
        ranks.signal(rank, signal.SIGSTOP)
        deadline = time.monotonic() + 120
        while ranks.wait(0)[1 - rank] is None:
            assert time.monotonic() < deadline, "the other rank waits for ever"
            time.sleep(0.1)
        ranks.signal(rank, signal.SIGKILL)  # as the launcher would


def _step(run: Path) -> str:
    saved = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    return saved[-1] if saved else "none saved"


if __name__ == "__main__":
    sys.exit(main())
