"""Collect the numbers of steps between two log steps, and compute the metrics over all ranks."""

import math
import resource
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

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
    """Collects the numbers of steps, and writes them at log steps.

    Args:
        world, data, engine, saver, report: those of the run.
        bad: records bad samples.
        not_finite: records steps without a finite gradient.
        batch_size: inputs per step.
        views: inputs per sample that is read.
        masks: inputs per crop or clip.
        frames: frames per clip; None: inputs are images.
        flops: FLOP to train on one input.
        trace: trace of the run's samples; None: no trace.

    Attributes:
        meter: the sums over the steps since the last log.
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
        masks: int,
        frames: int | None,
        flops: int,
        trace: SampleTrace | None,
    ) -> None:
        self._world, self._data, self._engine, self._saver, self._report = world, data, engine, saver, report
        self._bad, self._not_finite, self._trace = bad, not_finite, trace
        self._batch_size, self._frames, self._flops = batch_size, frames, flops
        self._views, self._masks = views, masks
        self._of_mixture = Counter[str]()  # samples since the last log, by metric
        self._seen = Counter[str]()  # inputs since then, and their frames; of a step all ranks have equally many
        self._stragglers = Stragglers()
        self.meter = Meter(world.device)
        self.save_overdue = False

    def noted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass batches on, recording their bad samples and, for the trace, all of their samples."""
        for batch in batches:
            self._bad.add(batch.bad)
            self._count("samples", batch.request.ids.tolist())
            self._count("bad_samples", [sample.id for sample in batch.bad])
            if self._trace:
                self._trace.add(batch.request)
            inputs, frames = len(batch.inputs), batch.inputs.shape[2] if batch.inputs.ndim == 5 else 0
            self._seen.update(inputs=inputs, frames=inputs * frames)
            yield batch

    def _count(self, what: str, samples: Sequence[int]) -> None:
        counts = self._data.counts(samples)
        self._of_mixture.update({f"{what}/{name}": count for name, count in counts.items()})

    def learned(self, step: int) -> None:
        """Record a step that was learned from. Does not wait for the device."""
        self._not_finite.note(step, self._engine.not_finite())
        if self._trace:
            self._trace.write(step)

    def passed_over(self) -> None:
        """Record that the samples of a step were not learned from."""
        if self._trace:
            self._trace.drop()

    def metrics(self, done: int) -> Metrics:
        """Return the numbers of the steps since the last log, over all ranks, which call this together.

        Raises:
            TooManyNonFinite: too many consecutive steps had no finite gradient.
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
        share = None
        if len(self._data.media) == 1:  # of both, inputs differ in what they cost
            share = mfu(rate, self._flops, self._world.size, self._engine.dtype)
        return {
            **self._losses(total),
            "grad_norm": self._engine.grad_norm(),
            "lr": self._engine.learning_rate,
            "images_per_second": rate,
            **({} if self._frames is None else {"frames_per_second": rate / self._masks * self._mean_frames()}),
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

    def _losses(self, total: Mapping[str, float]) -> Metrics:
        """Return the mean loss and, of a mixture of images and videos, that of each medium that there was."""
        media = sorted(self._data.media)
        losses = {medium: total.get(f"loss/{medium}", 0.0) for medium in media}
        images = {medium: total.get(f"images/{medium}", 0.0) for medium in media}
        # None where all steps were skipped, every image was bad, or no loss was finite
        mean = sum(losses.values()) / sum(images.values()) if any(images.values()) else math.nan
        if len(media) == 1:
            return {"loss": mean}
        return {"loss": mean} | {f"loss/{name}": losses[name] / count for name, count in images.items() if count}

    def _mean_frames(self) -> float:
        """Return the mean number of frames of an input since the last log."""
        return self._seen["frames"] / self._seen["inputs"] if self._seen["inputs"] else 0.0

    def write(self, done: int, metrics: Metrics) -> None:
        """Write metrics, and start the next collection."""
        self._report.log(done, metrics)
        for problem in self._saver.problems():
            self._report.say(f"warning: {problem}")
        self.meter = Meter(self._world.device)
        self._of_mixture.clear()
        self._seen.clear()


def _peak_memory(device: torch.device) -> int:
    """Return the peak of allocated bytes on the GPU or, on a CPU, of the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
