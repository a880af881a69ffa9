"""What the loop asks of that which a run learns: `pipeline.pretrain.task` and `pipeline.finetune.task` answer."""

from typing import Any, Protocol

from torch import Tensor, nn

from pipeline.data.batch import Batch
from pipeline.train.engine import Engine
from pipeline.train.monitor import Metrics, Monitor


class Task(Protocol):
    """What a run learns. Every rank builds one of the same; all ranks call everything together.

    Attributes:
        name: for people.
        identity: what decides the run's numbers beyond its settings and its training images, by name; JSON.
        inputs: the same of what a run may change between its lives, but ranks must agree in.
        average: decay of a moving average of the weights; None: there is none.
    """

    name: str
    identity: dict[str, Any]
    inputs: dict[str, Any]
    average: float | None

    @property
    def model(self) -> nn.Module:
        """What is trained, in fp32 on the CPU, as `run.seed` draws its weights."""
        ...

    def start(self) -> list[str]:
        """Give the model the weights that a new run starts from; what an operator should know of that."""
        ...

    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups; `lr_scale` of a group multiplies its learning rate."""
        ...

    def prepare(self, batch: Batch) -> Any:
        """What `errors` takes, from a micro-batch. May draw from torch's generator, which is seeded anew each time."""
        ...

    def errors(self, engine: Engine, prepared: Any) -> tuple[Tensor, Tensor]:
        """Losses of a micro-batch's images, with a gradient, and how much each counts: two float32 (n,)."""
        ...

    def begin(self, engine: Engine, done: int, monitor: Monitor | None) -> None:
        """Before the first step of this life, of a run of which `done` steps are done. `monitor` is rank 0's."""
        ...

    def validate(self, engine: Engine, done: int, monitor: Monitor | None) -> Metrics:
        """Measure the model, and show it."""
        ...
