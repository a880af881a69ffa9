"""Configure DeepSpeed from a recipe, and wrap it in the few calls of a training step.

Workarounds for DeepSpeed 0.19, which are only here:
- One of its optimizers takes a step at construction to create the moments, which decays the weights once and makes
  the first update too small. The learning rate is therefore 0 until then, and step counts are reset afterwards.
- ZeRO 1 and 2 link moments to parameters after the first group's first step, when those of the other groups do not
  exist yet: the moments are created and linked here, before any step.
- At stage 0 in fp16 it unscales gradients of a loss that it has not scaled: there the loss is scaled here.
- At stage 0 in fp32 it clips without reporting the norm, and at stages 1 and 2 it waits for the device to clip: there,
  except in fp16, norm, clipping and skipping are done here, within the optimizer (see `pipeline.optimizers`).
- ZeRO 3 replaces torch's `linear` for the rest of the process by one with other rounding: numbers of two engines in one
  process are equal bit for bit only if there was no ZeRO 3 between them.
- Its throughput timer synchronises the device twice per micro-batch at every stage unless it is disabled.
- ZeRO 2 allocates a bucket of 500 million elements, however small the model is, unless configured otherwise.
- Under bf16 it accumulates gradients in bf16 unless configured otherwise, which is not possible at stage 0.
"""

import logging
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, cast

import deepspeed
import torch
from deepspeed import comm
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from pipeline.checkpoints.checkpoint import AVERAGE
from pipeline.cluster.world import World
from pipeline.device import DTYPES as DTYPES
from pipeline.optimizers import OPTIMIZERS, build_optimizer
from pipeline.sections import Engine as EngineSettings
from pipeline.sections import Optim
from pipeline.train.deepspeed_config import clips_here, deepspeed_config, under_bf16_optimizer
from pipeline.train.errors import TrainingError

NO_SCALE = (
    "no gradient is finite, however small fp16's loss scale: start again with a lower optim.lr, or with "
    "engine.precision=bf16 or fp32"
)
_LARGEST_BUCKET = 500_000_000  # elements, DeepSpeed's default; ZeRO 2 allocates a whole bucket, however small the model

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


def decay_groups(model: nn.Module, weight_decay: float, vectors: Collection[str] = ()) -> list[dict[str, Any]]:
    """Return parameter groups as in the paper's code: weight decay for all parameters except vectors and biases.

    Args:
        model: the model to train.
        weight_decay: the weight decay.
        vectors: names of one-dimensional parameters with weight decay nevertheless.
    """
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": decay} for decay in (weight_decay, 0.0)]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[parameter.ndim <= 1 and name not in vectors]["params"].append(parameter)
    return groups


def schedule(optimizer: torch.optim.Optimizer, optim: Optim, steps_per_epoch: float) -> CosineLRScheduler:
    """Return a schedule of linear warm-up, then half a cosine; `step_update(step)` sets the rate of any step."""
    for group in optimizer.param_groups:
        group["lr"] = optim.lr * optim.batch_size / 256
    warmup = warmup_steps(optim, steps_per_epoch)
    # It warns of a cosine of a single step, which the shortest trial runs have
    logging.getLogger(CosineLRScheduler.__module__).setLevel(logging.ERROR)
    return CosineLRScheduler(
        optimizer,
        t_initial=total_steps(optim, steps_per_epoch) - warmup,
        lr_min=optim.min_lr,
        warmup_t=warmup,
        warmup_lr_init=optim.warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )


def total_steps(optim: Optim, steps_per_epoch: float) -> int:
    """Return the steps of the whole schedule; at least one after the warm-up."""
    return max(round(optim.epochs * steps_per_epoch), warmup_steps(optim, steps_per_epoch) + 1)


def warmup_steps(optim: Optim, steps_per_epoch: float) -> int:
    """Return the steps of the warm-up."""
    return round(optim.warmup_epochs * steps_per_epoch)


class Engine:
    """A model under DeepSpeed.

    Args:
        model: the model, on any device, in fp32.
        settings: stage and precision; also whether TF32 is allowed, for the whole process.
        optim: optimizer and schedule.
        micro_batch: inputs that a rank computes at once.
        world: the processes.
        steps_per_epoch: may be fractional.
        groups: parameter groups of the model; None: `decay_groups`.
        average: decay of a moving average of the weights; None: no average.

    Attributes:
        states: names of the optimizer's state for every weight.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: EngineSettings,
        optim: Optim,
        micro_batch: int,
        world: World,
        steps_per_epoch: float,
        groups: list[dict[str, Any]] | None = None,
        average: float | None = None,
    ) -> None:
        torch.set_float32_matmul_precision("high" if settings.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = settings.tf32  # torch allows it for convolutions by default
        # An average is kept beside the moments, so that ZeRO partitions it likewise
        moments = OPTIMIZERS[optim.name].states
        self.states = moments if average is None else (*moments, AVERAGE)
        self._average = average
        self.dtype = DTYPES[settings.precision]
        self.stage = settings.zero_stage
        self._clip = (optim.clip or math.inf) if clips_here(settings) else None
        self._grad_norm: Tensor | None = None
        self.optimizer: Any = build_optimizer(
            optim.name, groups or decay_groups(model, optim.weight_decay), optim.betas
        )
        config = deepspeed_config(settings, optim, micro_batch, world.size)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        config["zero_optimization"]["reduce_bucket_size"] = min(_LARGEST_BUCKET, parameters)
        self.deepspeed, *_ = deepspeed.initialize(model=model, optimizer=self.optimizer, config=config)
        unscaled = self.stage == 0 and self.dtype == torch.float16
        self._scaler = self.deepspeed.optimizer.loss_scale_config if unscaled else None
        self._loss_scale = 1.0
        self._bf16 = under_bf16_optimizer(settings)
        if self._bf16:
            self.deepspeed.optimizer.step = self._step_under_bf16
        self._create_moments()
        self.schedule = schedule(self.optimizer, optim, steps_per_epoch)

    def predict(self, *inputs: Any) -> Tensor:
        """Return the model's `forward`; every rank has to call it together."""
        return cast(Tensor, self.deepspeed(*inputs))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the model into evaluation mode without gradients in the block, and back into training mode after it."""
        self.deepspeed.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.deepspeed.train()

    def backward(self, loss: Tensor) -> None:
        """Accumulate this micro-batch's gradients; DeepSpeed averages over micro-batches and ranks."""
        if self._scaler:
            self._loss_scale = self._scaler.cur_scale
        self.deepspeed.backward(loss * self._loss_scale)

    def update(self) -> None:
        """Update the weights, if this micro-batch is the last of its step and the gradient of all ranks is finite.

        Raises:
            TrainingError: fp16 has found no loss scale, on all ranks alike.
        """
        last = self.deepspeed.is_gradient_accumulation_boundary()
        if self._clip is not None and last:
            self._grad_norm = self._global_norm()
            # The optimizer divides gradients by the former, and changes nothing where the latter is 1
            self.optimizer.grad_scale = ((self._grad_norm + 1e-6) / self._clip).clamp(min=1.0)
            self.optimizer.found_inf = (~self._grad_norm.isfinite()).float()
        try:
            self.deepspeed.step()
        except Exception as error:  # which does not have a class of its own
            if "loss scale already at minimum" not in str(error):
                raise
            raise TrainingError(NO_SCALE) from error
        smallest = self._scaler is not None and self._loss_scale <= self._scaler.min_loss_scale
        if last and smallest and self.deepspeed.optimizer.overflow:  # stage 0 would continue forever
            raise TrainingError(NO_SCALE)
        if self._average is not None and last:
            # The average is updated only with the weights; the flag may be on the device, and nothing waits for it
            stayed = float(self.deepspeed.optimizer.overflow) if self._clip is None else self.optimizer.found_inf
            share = (1 - self._average) * (1 - stayed)
            with torch.no_grad():
                for weight in self._updated:
                    self.optimizer.state[weight][AVERAGE].lerp_(weight, share)

    def not_finite(self) -> Tensor:
        """Return whether the last step was skipped for a gradient that is not finite: float32, 1 or 0, on the device.

        Under fp16 always 0, since such steps are part of finding the loss scale.
        """
        if self._clip is not None:
            found: Tensor = self.optimizer.found_inf
            return found
        overflow = self.dtype != torch.float16 and self.deepspeed.optimizer.overflow
        return torch.full((), float(overflow), device=self.deepspeed.device)

    def grad_norm(self) -> float:
        """Return the L2 norm of the last step's gradient before clipping. Waits for the device."""
        norm = self.deepspeed.get_global_grad_norm() if self._clip is None else self._grad_norm
        return float("nan") if norm is None else float(norm) / self._loss_scale

    def skipped_steps(self, done: int) -> int:
        """Return how many of a run's `done` steps changed nothing. Waits for the device."""
        return int(done - self.optimizer_states()[0]["step"])

    @property
    def learning_rate(self) -> float:
        """Return the learning rate of the current step; with layer decay that of the last layer."""
        return float(max(group["lr"] for group in self.optimizer.param_groups))

    def optimizer_states(self) -> list[dict[str, Tensor]]:
        """Return the optimizer's own entries, one per tensor that it updates: `step` and `states`."""
        return list(self.optimizer.state.values())

    def _global_norm(self) -> Tensor:
        """Return the L2 norm of the gradient over all ranks, float32 on the device, without waiting for it."""
        if self.stage == 0:  # every rank has all of it
            gradients = [p.grad for p in self.deepspeed.module.parameters() if p.grad is not None]
            return nn.utils.get_total_norm(gradients)
        if self._bf16:
            parts = self.deepspeed.optimizer.fp32_groups_gradient_flat_partition
        else:
            parts = list(chain.from_iterable(self.deepspeed.optimizer.averaged_gradients.values()))
        squares = torch.stack(torch._foreach_norm(parts, dtype=torch.float32)).square().sum()
        comm.all_reduce(squares)
        return squares.sqrt()

    def _step_under_bf16(self) -> None:
        """Take `BF16_Optimizer.step` without norm and clipping, in which it waits for the device twice."""
        inner = self.deepspeed.optimizer
        parts = zip(inner.fp32_groups_flat_partition, inner.fp32_groups_gradient_flat_partition, strict=True)
        with torch.no_grad():
            for part, gradient in parts:
                part.grad = gradient
            inner.optimizer.step()
            inner.update_lp_params()

    def _create_moments(self) -> None:
        inner = self.deepspeed.optimizer
        if self.stage == 3:  # it puts these into the parameter groups only during a step
            self._updated = list(inner.fp32_partitioned_groups_flat)
        else:
            self._updated = [tensor for group in self.optimizer.param_groups for tensor in group["params"]]
        self.optimizer.state.clear()
        for tensor in self._updated:
            step = torch.zeros((), dtype=torch.float32, device=tensor.device)
            self.optimizer.state[tensor] = {"step": step} | {key: torch.zeros_like(tensor) for key in self.states}
        if self.stage in (1, 2):
            inner._lazy_init_hp_params_optimizer_state()
