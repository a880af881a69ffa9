"""Record the attention weights of a network whose blocks use `Tensor.softmax`, as those of timm and torchvision do."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _Softmaxes(TorchFunctionMode):
    """Keeps the results of every softmax within its context, as float32."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.softmax:
            self.results.append(result.float())
        return result


def softmaxes(compute: Callable[[], object]) -> list[Tensor]:
    """Return the results of all softmaxes in `compute`, in order."""
    kept = _Softmaxes()
    with kept:
        compute()
    return kept.results


def timm_softmaxes(blocks: Iterable[Any], compute: Callable[[], object]) -> list[Tensor]:
    """Return those of a timm transformer, with fused attention switched off, which does not expose its weights.

    Args:
        blocks: the blocks that `compute` runs.
    """
    layers = [block.attn for block in blocks]
    fused = [layer.fused_attn for layer in layers]
    try:
        for layer in layers:
            layer.fused_attn = False
        return softmaxes(compute)
    finally:
        for layer, was in zip(layers, fused, strict=True):
            layer.fused_attn = was
