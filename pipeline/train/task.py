"""The interface between the training loop and a task. `pretrain.task` and `finetune.task` implement it."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.data.batch import Batch
from pipeline.report.report import Metrics, Report
from pipeline.train.engine import Engine


class Predictor(Protocol):
    """A model under an engine."""

    def predict(self, *inputs: Any) -> Tensor:
        """Return the model's `forward` of these inputs; all ranks call it together."""
        ...


class Evaluator(Predictor, Protocol):
    """A model that can be evaluated.

    Attributes:
        dtype: that it computes in.
    """

    dtype: torch.dtype

    def evaluating(self) -> AbstractContextManager[None]:
        """Let the model compute as in evaluation inside, without gradients."""
        ...


class TaskLoss(Protocol):
    """From a micro-batch to the losses of its images."""

    def prepare(self, batch: Batch) -> Any:
        """Return what `losses` takes. May draw from torch's generator, which is seeded anew for each micro-batch."""
        ...

    def losses(self, engine: Predictor, prepared: Any) -> tuple[Tensor, Tensor]:
        """Return the losses of the images, with a gradient, and how much each counts: two float32 (n,)."""
        ...


class Task(TaskLoss, Protocol):
    """What a run learns. Every rank builds one of the same; all ranks call everything together.

    Attributes:
        name: for people.
        identity: what decides the run's numbers beyond its settings and its training images, by name; JSON.
        inputs: the same of what a run may change between its lives, but ranks must agree in.
        average: decay of a moving average of the weights; None: there is none.
        probe_every: steps between probes; None: there are none.
        next_commands: what to do with a run that is complete.
        flops: to train on one input, forward and backward.
    """

    name: str
    identity: dict[str, Any]
    inputs: dict[str, Any]
    average: float | None
    probe_every: int | None
    next_commands: list[str]
    flops: int

    @property
    def model(self) -> nn.Module:
        """The model to train, in fp32 on the CPU, with the weights that `run.seed` draws."""
        ...

    def load_initial_weights(self) -> list[str]:
        """Give the model the weights that a new run starts from. Return notes on them for the operator."""
        ...

    def groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups; `lr_scale` of a group multiplies its learning rate."""
        ...

    def before_first_step(self, engine: Engine, done: int, report: Report) -> None:
        """Prepare this life of a run, of which `done` steps are done."""
        ...

    def evaluate(self, engine: Engine, done: int, report: Report) -> Metrics:
        """Measure the model after `done` steps, and show what it does."""
        ...

    def probe(self, engine: Engine, done: int, report: Report) -> Metrics:
        """Judge what the model has learned after `done` steps by something else than its loss."""
        ...
