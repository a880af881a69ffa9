"""Collect what happens between two log steps, and make the metrics of it over all ranks."""

import math
import resource
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch

from pipeline.checkpoints.saver import Saver
from pipeline.cluster.world import World
from pipeline.data.batch import Batch
from pipeline.data.training_data import TrainingData
from pipeline.peaks import mfu
from pipeline.report.bad_samples import BadSamples
from pipeline.report.pace import Stragglers
from pipeline.report.report import Metrics, Report
from pipeline.report.sample_trace import SampleTrace
from pipeline.train.engine import Engine
from pipeline.train.errors import TrainingError
from pipeline.train.meter import Meter
from pipeline.train.nonfinite import NonFinite


class TrainingLog:
    """Collects the numbers of steps, and writes them down at log steps.

    Args:
        world, data, engine, saver, report: of the run.
        bad: told which samples are.
        not_finite: told which steps had no finite gradient.
        batch_size: inputs of a step.
        views: of them that are made of each sample that is read.
        frames: of an input that is a clip; None: inputs are images.
        flops: to train on one input.
        trace: of the samples that the run takes; None: it keeps none.

    Attributes:
        meter: of the steps since the last log.
        save_overdue: whether a save was overdue at the last log, by the clock of rank 0; the same on all ranks.
    """

    def __init__(
        self,
        world: World,
        data: TrainingData,
        engine: Engine,
        saver: Saver,
        report: Report,
        *,
        bad: BadSamples,
        not_finite: NonFinite,
        batch_size: int,
        views: int,
        frames: int | None,
        flops: int,
        trace: SampleTrace | None,
    ) -> None:
        self._world, self._data, self._engine, self._saver, self._report = world, data, engine, saver, report
        self._bad, self._not_finite, self._trace = bad, not_finite, trace
        self._batch_size, self._views, self._frames, self._flops = batch_size, views, frames, flops
        self._of_mixture = Counter[str]()  # samples since the last log, by metric
        self._stragglers = Stragglers()
        self.meter = Meter(world.device)
        self.save_overdue = False

    def noted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass batches on, keeping which of their samples are bad and, for the trace, all of their samples."""
        for batch in batches:
            self._bad.add(batch.bad)
            self._count("samples", batch.request.ids.tolist())
            self._count("bad_samples", [sample.id for sample in batch.bad])
            if self._trace:
                self._trace.add(batch.request)
            yield batch

    def _count(self, what: str, samples: Sequence[int]) -> None:
        counts = self._data.counts(samples)
        self._of_mixture.update({f"{what}/{name}": count for name, count in counts.items()})

    def learned(self, step: int) -> None:
        """Note what came of a step that was learned from. Does not wait for the device."""
        self._not_finite.note(step, self._engine.not_finite())
        if self._trace:
            self._trace.write(step)

    def passed_over(self) -> None:
        """Note that the samples taken for a step were not learned from."""
        if self._trace:
            self._trace.drop()

    def metrics(self, done: int) -> Metrics:
        """Return the numbers of the steps since the last log, over all ranks, which call this together.

        Raises:
            TooManyNonFinite: too many steps in a row had no finite gradient.
            TrainingError: too many samples were bad.
        """
        not_finite = self._not_finite.count()
        clock = self.meter.clock
        own = {
            "seconds": clock.own_seconds(),
            "data_wait": clock.wait / clock.elapsed,
            "bad": len(self._bad),
            "overdue": self._saver.overdue,
        }
        counters = {f"data/{name}": count for name, count in self._data.counters().items()} | dict(self._of_mixture)
        gathered = self.meter.gather(self._world, own | counters)
        total, seconds = gathered.total, gathered.by_rank["seconds"]
        self.save_overdue = bool(gathered.by_rank["overdue"][0])
        seen = clock.steps * self._batch_size
        rate = seen / clock.elapsed
        if problem := self._bad.log(int(total["bad"]), seen // self._views, self._report):
            raise TrainingError(problem)
        for rank, times in self._stragglers.slow_ranks(seconds).items():
            self._report.say(f"note: rank {rank} takes {times:.1f} times as long as the median rank")
        images = total.get("images", 0)  # none where all steps were passed over
        share = mfu(rate, self._flops, self._world.size, self._engine.dtype)
        return {
            "loss": total["loss"] / images if images else math.nan,  # or every image was bad, or no loss finite
            "grad_norm": self._engine.grad_norm(),
            "lr": self._engine.learning_rate,
            "images_per_second": rate,
            **({} if self._frames is None else {"frames_per_second": rate * self._frames}),
            **({} if self._views == 1 else {"samples_per_second": rate / self._views}),
            **({} if share is None else {"mfu": share}),
            "data_wait": total["data_wait"] / self._world.size,
            "bad_samples": total["bad"],
            "nonfinite_steps": not_finite,
            "skipped_steps": self._engine.skipped_steps(done),
            "slowest_rank": max(seconds),
            "failed_saves": self._saver.failures,
            "memory_gib": _peak_memory(self._world.device) / 2**30,
        } | {name: total[name] for name in counters}

    def write(self, done: int, metrics: Metrics) -> None:
        """Write metrics down, and begin to collect anew."""
        self._report.log(done, metrics)
        for problem in self._saver.problems():
            self._report.say(f"warning: {problem}")
        self.meter = Meter(self._world.device)
        self._of_mixture.clear()


def _peak_memory(device: torch.device) -> int:
    """Return the most bytes that were allocated on the GPU or, on a CPU, resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
