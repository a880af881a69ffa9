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
        """Return the model's `forward` for these inputs; all ranks call it together."""
        ...


class Evaluator(Predictor, Protocol):
    """A model that can be evaluated.

    Attributes:
        dtype: the compute precision.
    """

    dtype: torch.dtype

    def evaluating(self) -> AbstractContextManager[None]:
        """Put the model into evaluation mode in the block, without gradients."""
        ...


class TaskLoss(Protocol):
    """Computes the losses of the images in a micro-batch."""

    def prepare(self, batch: Batch) -> Any:
        """Return the input of `losses`. May draw from torch's generator, which is seeded for each micro-batch."""
        ...

    def losses(self, engine: Predictor, prepared: Any) -> tuple[Tensor, Tensor]:
        """Return the losses of the images, with a gradient, and their weights: two float32 (n,)."""
        ...


class Task(TaskLoss, Protocol):
    """The task of a run. Every rank builds an equal one; all ranks call every method together.

    Attributes:
        name: a name for people.
        identity: the facts that decide the run's numbers besides its settings and training images, by name, as JSON.
        inputs: likewise the facts that may change between attempts, but must be equal on all ranks.
        average: decay of a moving average of the weights; None: no average.
        probe_every: steps between probes; None: no probes.
        next_commands: commands to run once the run is complete.
        flops: FLOP to train on one input, forward and backward.
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
        """The model to train, in fp32 on the CPU, with weights drawn by `run.seed`."""
        ...

    def load_initial_weights(self) -> list[str]:
        """Load the model's weights for the start of a new run. Return notes on them for the operator."""
        ...

    def groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups; `lr_scale` of a group multiplies its learning rate."""
        ...

    def before_first_step(self, engine: Engine, done: int, report: Report) -> None:
        """Prepare this attempt of a run, after `done` steps of earlier ones."""
        ...

    def evaluate(self, engine: Engine, done: int, report: Report) -> Metrics:
        """Measure the model after `done` steps, and report examples."""
        ...

    def probe(self, engine: Engine, done: int, report: Report) -> Metrics:
        """Evaluate what the model has learned after `done` steps, other than by its loss."""
        ...
