"""The optimizers there are. A new one is a line in `OPTIMIZERS`, if checkpoints can hold all that it keeps.

That is, of every weight some tensors of its shape, which start at zero, and one count of steps. ZeRO 1 to 3 divide each
group's weights among the ranks as one vector, so an optimizer that looks at a weight as a whole works at stage 0 only.
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
        build: makes it of parameter groups and betas; its learning rate is 0.
        states: names of the tensors that it keeps of every weight.
        whole: whether it looks at each weight as a whole, as by its norm.
    """

    build: Callable[[Groups, tuple[float, float]], Optimizer]
    states: tuple[str, ...]
    whole: bool = False


OPTIMIZERS = {
    "adamw": Kind(
        lambda groups, betas: torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True), ("exp_avg", "exp_avg_sq")
    ),
    # Clipping is a setting of its own, so LAMB's is left out
    "lamb": Kind(
        lambda groups, betas: Lamb(groups, lr=0.0, betas=betas, max_grad_norm=None),
        ("exp_avg", "exp_avg_sq"),
        whole=True,
    ),
    "lion": Kind(lambda groups, betas: Lion(groups, lr=0.0, betas=betas), ("exp_avg",)),
    "sgdw": Kind(lambda groups, betas: SGDW(groups, lr=0.0, momentum=betas[0]), ("momentum_buffer",)),
}


def build_optimizer(name: str, groups: Groups, betas: tuple[float, float]) -> Optimizer:
    """Build an optimizer that counts its steps, and clips and skips as it is told.

    The fused AdamW does by itself, without waiting for the device, what others are made to do here: divide gradients by
    `grad_scale`, and leave everything as it is where `found_inf` is 1.

    Args:
        name: of `OPTIMIZERS`.
        groups: parameter groups, with their weight decay.
        betas: see torch's and timm's optimizers; of SGDW the first is the momentum.
    """
    optimizer = OPTIMIZERS[name].build(groups, betas)
    if name != "adamw":
        optimizer.step = partial(_step, optimizer, optimizer.step)  # type: ignore[method-assign, assignment]
    return optimizer


def _step(optimizer: Optimizer, update: Callable[[], object]) -> None:
    """Do what the fused AdamW does around `update`, for the groups there are: ZeRO 1 and 2 hand in one at a time."""
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
