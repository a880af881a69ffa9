"""Compute a training step of one rank: its micro-batches, and the update of the weights."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.cluster.phases import Phases
from pipeline.cluster.world import World
from pipeline.data.batch import Batch
from pipeline.random import mix_int
from pipeline.train.meter import Meter
from pipeline.train.task import Predictor, TaskLoss


class StepEngine(Predictor, Protocol):
    """The part of `pipeline.train.engine.Engine` that a step needs."""

    schedule: Any

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a micro-batch."""
        ...

    def update(self) -> None:
        """Update the weights, if this micro-batch is the last of its step."""
        ...


class Stepper:
    """Takes the steps of one rank. Nothing here waits for the device, logs or saves.

    Args:
        task: computes the losses of a micro-batch.
        engine: computes gradients and updates the weights.
        world: the ranks.
        phases: the phases of this rank.
        seed: seed of the model's random numbers.
        micro_batches: number of a rank's micro-batches per step.
    """

    def __init__(
        self, task: TaskLoss, engine: StepEngine, world: World, phases: Phases, seed: int, micro_batches: int
    ) -> None:
        self._task, self._engine, self._world, self._phases = task, engine, world, phases
        self._seed, self.micro_batches = seed, micro_batches

    def train(self, step: int, batches: Iterator[Batch], meter: Meter) -> Tensor:
        """Take a step's micro-batches, learn from each, and update the weights.

        Returns:
            The mean loss of the last micro-batch, float32 on the device.
        """
        self._engine.schedule.step_update(step)
        for batch in self._batches_of(step, batches, meter):
            loss = self._learn(batch, meter)
        return loss

    def pass_over(self, step: int, batches: Iterator[Batch], meter: Meter) -> None:
        """Take a step's micro-batches without learning from them."""
        self._engine.schedule.step_update(step)
        for _ in self._batches_of(step, batches, meter):
            pass

    def _batches_of(self, step: int, batches: Iterator[Batch], meter: Meter) -> Iterator[Batch]:
        for micro_batch in range(self.micro_batches):
            # Drop path draws from torch's generator, which is seeded here, so that no state has to be saved
            counter = (step * self.micro_batches + micro_batch) * self._world.size + self._world.rank
            torch.manual_seed(mix_int(mix_int(self._seed) + counter))
            with self._phases("data wait"), meter.clock.waiting():
                batch = next(batches)
            yield batch
        meter.clock.steps += 1

    def _learn(self, batch: Batch, meter: Meter) -> Tensor:
        """Compute forward, backward and, after the last micro-batch, the update. Return the mean loss."""
        with self._phases("target"):
            prepared = self._task.prepare(batch)
        with self._phases("forward"), meter.clock.working():
            losses, weights = self._task.losses(self._engine, prepared)
            losses = losses * weights
            # A bad sample has weight 0, but still counts in the mean, so that the gradients of the others do not change
            loss = losses.mean()
        with self._phases("backward"):
            self._engine.backward(loss)
        with self._phases("optimizer"):
            self._engine.update()
        losses = losses.detach()
        finite = losses.isfinite()
        meter.add(
            **{
                f"loss/{batch.request.medium}": losses.where(finite, 0).sum(),
                f"images/{batch.request.medium}": (weights * finite).sum(),
            }
        )
        return loss.detach()
