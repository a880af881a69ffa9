"""Item 3: whether a training step waits for the device."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from deepspeed.accelerator import get_accelerator

from benchmarks.gpu.results import Bench, Check, LeftOut, Result
from benchmarks.gpu.traces import traced
from benchmarks.step import Loop, resident
from pipeline.train.world import join

STAGES = (0, 1, 2)
_MESSAGE = "synchronizing CUDA operation"  # of the error that CUDA's debug mode raises


@contextmanager
def recorded_waits(device: torch.device) -> Iterator[list[str]]:
    """Inside, what this thread calls to wait for a device, stream or event is recorded by name.

    On a GPU an operation that waits by itself, such as `item`, ends the block, and its error is recorded.
    """
    waits: list[str] = []
    thread = threading.current_thread()

    def recording(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is thread:
                waits.append(name)
            return function(*args, **kwargs)

        return call

    gpu = device.type == "cuda"
    with ExitStack() as stack:
        for owner in (type(get_accelerator()), torch.accelerator, torch.cuda, torch.cuda.Stream, torch.cuda.Event):
            name = f"{owner.__name__}.synchronize"
            stack.enter_context(patch.object(owner, "synchronize", recording(name, owner.synchronize)))
        if gpu:
            torch.cuda.set_sync_debug_mode("error")
            stack.callback(torch.cuda.set_sync_debug_mode, "default")
        try:
            yield waits
        except RuntimeError as error:
            if not gpu or _MESSAGE not in str(error):
                raise
            waits.append(str(error))


def step_waits(loop: Loop) -> dict[str, list[str]]:
    """What waits in two further steps, by call and error, and in three more, by the trace of the CUDA runtime."""
    batches, device = resident(loop.recipe, loop.world), loop.world.device
    loop.steps(3, batches)
    with recorded_waits(device) as waits:
        loop.step(batches)
        loop.step(batches)
    if waits:  # such an error has left a step undone
        return {"recorded": waits, "traced": []}
    return {"recorded": waits, "traced": traced(lambda: loop.step(batches), 3, device).waits()}


def waiting(bench: Bench) -> Iterator[Result]:
    """A step at ZeRO 0, 1 and 2 never waits for the device."""
    scale, world = bench.scale, join()
    for stage in STAGES:
        name = f"no wait for the device in a step, ZeRO {stage}"
        if lack := bench.lacking(name, 40 if stage == STAGES[0] else 10):
            yield lack
            continue
        waits = step_waits(Loop(scale.small(f"engine.compile={scale.compiled}", f"engine.zero_stage={stage}"), world))
        yield Check(name, not any(waits.values()), dict(waits))
    if scale.dry:
        yield LeftOut("waits inside of operations and of the CUDA runtime", "there is no CUDA")
