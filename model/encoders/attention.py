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

    Of a block with several attentions, as in parallel or differential ones, they are joined as if they were more heads.

    Args:
        blocks: the blocks that `compute` runs.

    Raises:
        ValueError: the blocks do not have equally many attentions.
    """
    blocks = list(blocks)
    layers = [layer for block in blocks for layer in block.modules() if hasattr(layer, "fused_attn")]
    fused = [layer.fused_attn for layer in layers]
    try:
        for layer in layers:
            layer.fused_attn = False
        found = softmaxes(compute)
    finally:
        for layer, was in zip(layers, fused, strict=True):
            layer.fused_attn = was
    each, rest = divmod(len(found), len(blocks))
    if rest or not each:
        raise ValueError("the attention of this encoder's blocks cannot be read")
    return [torch.cat(found[start : start + each], dim=1) for start in range(0, len(found), each)]
