"""Item 4: check that compiled models learn as eager ones, and that a resumed run equals an undisturbed one."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.kernel import ROUNDING
from benchmarks.gpu.results import Bench, Check, Result
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.waiting import never_waits
from benchmarks.step import Loop, resident
from pipeline.checkpoints.checkpoint import folder_of
from pipeline.cluster.phases import Phases
from pipeline.cluster.preemption import Preemption
from pipeline.cluster.world import join
from pipeline.config import Recipe
from pipeline.pretrain.task import Pretraining
from pipeline.train.setup import set_up

SAVED, END = 3, 6  # steps of the resumed run
CLOSE = 1e-3  # relative difference of losses: a GPU sums gradients in varying order


def compiled_loss(bench: Bench) -> Iterator[Result]:
    """Compare the losses of three steps, compiled and eager."""
    yield _compiled_and_eager("compiled loss equals eager loss", bench.scale, bench.scale.small)


def visible_only(bench: Bench) -> Iterator[Result]:
    """Check a model that encodes visible patches only: its compiled loss, and that its steps do not wait."""
    scale = bench.scale
    yield _compiled_and_eager("compiled loss equals eager loss, visible patches only", scale, scale.visible)
    loop = Loop(scale.visible(f"engine.compile={scale.compiled}"), join())
    yield Check("no wait for the device in a step, visible patches only", *never_waits(loop))


def _compiled_and_eager(name: str, scale: Scale, recipe: Callable[..., Recipe]) -> Check:
    world, losses = join(), dict[str, list[float]]()
    for how, setting in (("compiled", scale.compiled), ("eager", scale.eager)):
        loop = Loop(recipe(f"engine.compile={setting}"), world)
        batches = resident(loop.recipe, world)
        losses[how] = []
        for _ in range(3):
            loop.step(batches)
            losses[how].append(float(loop.loss))
    compiled, eager = losses.values()
    right = all(abs(a - b) <= ROUNDING * b for a, b in zip(compiled, eager, strict=True))
    return Check(name, right, dict(losses))


def resumed_run(bench: Bench) -> Iterator[Result]:
    """Compare a run with itself after it lost its last steps: equal samples, and losses equal up to rounding."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        metrics, samples = _life(bench, run)
        shutil.rmtree(folder_of(run / "checkpoints", END))
        (run / "complete").unlink(missing_ok=True)
        resumed_metrics, resumed_samples = _life(bench, run)
    kept = metrics[:SAVED] == resumed_metrics[:SAVED]  # including rates: these steps were not repeated
    same = samples == resumed_samples
    losses = [(a["loss"], b["loss"]) for a, b in zip(metrics, resumed_metrics, strict=True)]
    off = max(abs(a / b - 1) for a, b in losses)
    numbers = {"resumed at the save": kept, "same samples": same, "losses off by": off}
    yield Check("a resumed run equals an undisturbed one", kept and same and off <= CLOSE, numbers)


def _life(bench: Bench, run: Path) -> list[list[dict[str, Any]]]:
    """Train to the end from the run's current step; return its metrics and its samples, one object per step."""
    recipe = bench.scale.small(
        f"data.shards={bench.shards}",
        f"engine.compile={bench.scale.compiled}",
        "optim.warmup_epochs=0",
        f"run.dir={run}",
        f"run.max_steps={END}",
        f"run.save_every={SAVED}",
        "run.log_every=1",
        "run.trace_samples=true",
    )
    world = join()
    with Phases(run, world.rank, recipe.run.deadline) as phases, Preemption(world) as preemption:
        set_up(recipe, world, phases, Pretraining).run(preemption)
    files = (run / "metrics.jsonl", run / "samples-rank0.jsonl")
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
