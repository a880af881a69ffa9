"""One of two ranks that save and read checkpoints together, for test_saver.py: leaves rank{r}.json of what it saw."""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoints import saver as saver_module
from pipeline.checkpoints.checkpoint import Facts, newest
from pipeline.checkpoints.saver import Saver
from pipeline.cluster.world import World, join

MEGABYTE = 2**18  # of float32


def saver_in(folder: Path, world: World, size: int = MEGABYTE) -> Saver:
    return Saver(folder, world, {f"weight/{world.rank}": (size,)}, keep=9, keep_every=None)


def states(world: World, step: int, size: int = MEGABYTE) -> list[tuple[str, torch.Tensor]]:
    return [(f"weight/{world.rank}", torch.full((size,), step + world.rank / 10))]


def facts(step: int) -> Facts:
    return Facts(step, {}, {}, {})


def main(out: Path) -> None:
    world = join()
    seen: dict[str, Any] = {}
    checkpoints = out / "checkpoints"
    saver = saver_in(checkpoints, world)
    for step in (1, 2):
        saver.start(states(world, step), facts(step))
    seen["no problem"] = saver.wait()

    # A disk that fails one rank, once
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    if world.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    saver.start(states(world, 3), facts(3))
    seen["problem"] = saver.wait()
    seen["left"] = sorted(path.name for path in checkpoints.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    saver.start(states(world, 4), facts(4))
    seen["next"] = saver.wait()

    # Damage in the part that rank 1 checks, or rank 0
    for damaged in (1, 0):
        world.barrier()
        if world.rank == 0:
            part = checkpoints / f"step-0000000{4 if damaged else 2}" / f"part-0000{damaged}.safetensors"
            part.write_bytes(part.read_bytes()[:-1] + b"\1")
        world.barrier()
        said: list[str] = []
        found = newest(checkpoints, said.append, world)
        assert found
        seen[f"damaged {damaged}"] = found.facts.step, len(said)
        seen[f"values {damaged}"] = {name: value.unique().tolist() for name, value in found.weights().items()}

    # A rank that does not come
    saver_module.DEADLINE = 10
    late = saver_in(checkpoints, world)
    saver_module.DEADLINE = 60
    if world.rank == 0:
        late.start(states(world, 5), facts(5))
        try:
            late.wait()
        except RuntimeError as error:
            seen["late"] = str(error)
    world.barrier()

    # A rank that dies with its part half written
    left = saver_in(checkpoints, world, 32 * MEGABYTE)
    left.start(states(world, 6, 32 * MEGABYTE), facts(6))
    (out / f"rank{world.rank}.json").write_text(json.dumps(seen))
    if world.rank == 1:
        while not [*checkpoints.glob(".step-00000006/part-00001*"), *checkpoints.glob("step-00000006")]:
            time.sleep(0.0005)
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        seen["lost"] = left.wait()
    except RuntimeError as error:
        seen["lost"] = str(error)
    (out / "rank0.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
