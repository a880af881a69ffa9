"""Item 3: check that no training step waits for the device."""

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
from pipeline.cluster.world import join

STAGES = (0, 1, 2)
_LAUNCHES = ("cudaLaunch", "cuLaunch")
_MESSAGE = "synchronizing CUDA operation"  # message of the error in CUDA's debug mode


@contextmanager
def recorded_waits(device: torch.device) -> Iterator[list[str]]:
    """Record the name of every call in the block by which this thread waits for a device, a stream or an event.

    On a GPU, an operation that waits, such as `item`, ends the block, and its error is recorded.
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


def never_waits(loop: Loop) -> tuple[bool, dict[str, Any]]:
    """Take steps that must not wait: two by recorded calls and errors, three by the trace of the CUDA runtime.

    Returns:
        Whether none waited, and the numbers of the check.
    """
    batches, device = resident(loop.recipe, loop.world), loop.world.device
    loop.steps(3, batches)
    with recorded_waits(device) as waits:
        loop.step(batches)
        loop.step(batches)
    if waits:  # an error among them has left a step incomplete
        return False, {"recorded": waits}
    trace = traced(lambda: loop.step(batches), 3, device)
    launches = sum(name.startswith(_LAUNCHES) for name in trace.within_steps())
    traceable = launches > 0 or device.type != "cuda"  # a trace that shows no launch would show no wait either
    numbers = {"recorded": waits, "traced": trace.waits(), "launches in three steps": launches}
    return traceable and not trace.waits(), numbers


def waiting(bench: Bench) -> Iterator[Result]:
    """Check steps at ZeRO 0, 1 and 2."""
    scale, world = bench.scale, join()
    for stage in STAGES:
        name = f"no wait for the device in a step, ZeRO {stage}"
        if late := bench.too_late(name, 40 if stage == STAGES[0] else 10):
            yield late
            continue
        loop = Loop(scale.small(f"engine.compile={scale.compiled}", f"engine.zero_stage={stage}"), world)
        yield Check(name, *never_waits(loop))
    if scale.dry:
        yield LeftOut("waits inside of operations and of the CUDA runtime", "there is no CUDA")
