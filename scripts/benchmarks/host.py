"""Measure the training thread's work in a step, part by part: on a GPU, the time to launch the work."""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.figures import Figure
from pipeline.cluster.phases import Phases
from pipeline.cluster.preemption import Preemption
from pipeline.cluster.world import World
from pipeline.config import load_recipe
from pipeline.pretrain.task import Pretraining
from pipeline.train.setup import set_up

SETTLING = 5  # skipped steps, in which queues fill and caches warm up
# As many operations as in ViT-B, each with hardly any computation
TINY = ("data.image_size=32", "model.options={embed_dim: 32, depth: 12, num_heads: 1}", "optim.batch_size=16")


def host(shards: Path, settings: list[str], world: World, steps: int) -> list[Figure]:
    """Measure this thread's processor time in milliseconds on a CPU, by part of a step: the median over steps.

    Other work on the machine does not count, and neither do other threads of this process.

    Args:
        shards: a data set of maskfeat-shards.
        settings: overrides of the tiny recipe.
        world: a world of one process.
        steps: number of steps.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = [f"data.shards={shards}", f"run.dir={folder}/run", "run.log_every=1", f"run.max_steps={SETTLING + steps}"]
        recipe = load_recipe("demo", [*TINY, "engine.compile=none", *run, *settings])
        with _TimedPhases(recipe.run.dir, world.rank, recipe.run.deadline) as phases, Preemption(world) as preemption:
            set_up(recipe, world, phases, Pretraining).run(preemption)
    settled = [phases.seconds[step] for step in range(SETTLING, SETTLING + steps - 1)]  # the last one saves
    medians = {name: statistics.median(of_step[name] for of_step in settled) for name in settled[0]}
    return [Figure(name, "ms", 1e3 * seconds) for name, seconds in medians.items()]


class _TimedPhases(Phases):
    """Phases that sum this thread's processor time, by step and name."""

    def __init__(self, folder: Path, rank: int, deadline: float) -> None:
        super().__init__(folder, rank, deadline)
        self.seconds: defaultdict[int, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = time.thread_time()
        with super().__call__(name):
            yield
        self.seconds[self.step][name] += time.thread_time() - begin
