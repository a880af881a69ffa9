"""The registry of optimizers. To add one, add a line to `OPTIMIZERS`, if checkpoints can hold its whole state.

That is, per weight some tensors of its shape, which start at zero, and one step count. ZeRO 1 to 3 partition each
group's weights among the ranks as one vector, so an optimizer that needs whole weights works at stage 0 only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.optim import SGDW, Lamb, Lion
from torch.optim import Optimizer

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Kind:
    """A kind of optimizer.

    Attributes:
        build: builds it from parameter groups and betas, with a learning rate of 0.
        states: names of its tensors per weight.
        whole: whether it needs whole weights, for instance their norm.
    """

    build: Callable[[Groups, tuple[float, float]], Optimizer]
    states: tuple[str, ...]
    whole: bool = False


OPTIMIZERS = {
    "adamw": Kind(
        lambda groups, betas: torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True), ("exp_avg", "exp_avg_sq")
    ),
    # Clipping is a separate setting, so LAMB's is off
    "lamb": Kind(
        lambda groups, betas: Lamb(groups, lr=0.0, betas=betas, max_grad_norm=None),
        ("exp_avg", "exp_avg_sq"),
        whole=True,
    ),
    "lion": Kind(lambda groups, betas: Lion(groups, lr=0.0, betas=betas), ("exp_avg",)),
    "sgdw": Kind(lambda groups, betas: SGDW(groups, lr=0.0, momentum=betas[0]), ("momentum_buffer",)),
}


def build_optimizer(name: str, groups: Groups, betas: tuple[float, float]) -> Optimizer:
    """Build an optimizer that counts its steps, and clips and skips as requested.

    The fused AdamW does this by itself, without waiting for the device; others are extended to do so: they divide
    gradients by `grad_scale`, and change nothing where `found_inf` is 1.

    Args:
        name: a name in `OPTIMIZERS`.
        groups: parameter groups, with their weight decay.
        betas: see torch's and timm's optimizers; for SGDW the first is the momentum.
    """
    optimizer = OPTIMIZERS[name].build(groups, betas)
    if name != "adamw":
        optimizer.step = partial(_step, optimizer, optimizer.step)  # type: ignore[method-assign, assignment]
    return optimizer


def _step(optimizer: Optimizer, update: Callable[[], object]) -> None:
    """Do around `update` what the fused AdamW does, for the present groups: ZeRO 1 and 2 pass one at a time."""
    if getattr(optimizer, "found_inf", False):
        return
    for group in optimizer.param_groups:
        states = [optimizer.state[weight] for weight in group["params"]]
        done = next((int(state["step"]) for state in states if "step" in state), 0)
        group["step"] = torch.tensor(float(done))  # where timm's LAMB counts
        for weight in group["params"]:
            if weight.grad is not None and hasattr(optimizer, "grad_scale"):
                weight.grad.div_(optimizer.grad_scale)
    update()
    for group in optimizer.param_groups:
        for weight in group["params"]:
            optimizer.state[weight].setdefault("step", torch.zeros(())).add_(1)
