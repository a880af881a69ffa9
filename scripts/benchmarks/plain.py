"""A training step in plain PyTorch: the peer of `pipeline.train.engine.Engine`, call for call."""

import math
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.cluster.world import World
from pipeline.sections import Engine as EngineSettings
from pipeline.sections import Optim
from pipeline.settings import ConfigError
from pipeline.train.engine import DTYPES, decay_groups, schedule


class PlainEngine:
    """AdamW over fp32 weights, with a copy for a model in bf16; DDP averages gradients over the ranks.

    Args:
        model: the model, on the device, in fp32.
        settings: provide the precision.
        optim: optimizer and schedule.
        micro_batch: inputs that a rank computes at once.
        world: the processes.
        steps_per_epoch: may be fractional.

    Raises:
        ConfigError: fp16 or gradient accumulation is requested, which is not supported.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: EngineSettings,
        optim: Optim,
        micro_batch: int,
        world: World,
        steps_per_epoch: float,
    ) -> None:
        if settings.precision == "fp16":
            raise ConfigError("the plain loop has no loss scaling: set engine.precision to bf16 or fp32")
        if optim.batch_size != micro_batch * world.size:
            raise ConfigError("the plain loop does not accumulate gradients: leave engine.micro_batch at null")
        dtype = DTYPES[settings.precision]
        masters = model if dtype == torch.float32 else deepcopy(model)
        model.to(dtype)
        self._clip = optim.clip or math.inf
        self._masters: list[Tensor] = list(masters.parameters())
        self._weights: list[Tensor] = list(model.parameters())
        self.optimizer = torch.optim.AdamW(
            decay_groups(masters, optim.weight_decay), lr=0.0, betas=optim.betas, fused=True
        )
        self.schedule = schedule(self.optimizer, optim, steps_per_epoch)
        self._model = DistributedDataParallel(model, gradient_as_bucket_view=True) if world.size > 1 else model

    def predict(self, *inputs: Any) -> Tensor:
        """Return the model's `forward`."""
        return cast(Tensor, self._model(*inputs))

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of this step's only micro-batch, averaged over the ranks."""
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Update the weights."""
        mixed = self._masters[0] is not self._weights[0]
        if mixed:
            for master, weight in zip(self._masters, self._weights, strict=True):
                assert weight.grad is not None
                master.grad = weight.grad.float()
        nn.utils.clip_grad_norm_(self._masters, self._clip)
        self.optimizer.step()
        if mixed:
            with torch.no_grad():
                torch._foreach_copy_(self._weights, self._masters)
        self._model.zero_grad(set_to_none=not isinstance(self._model, DistributedDataParallel))
