"""Count the memory that training on an input takes beside the weights, with tensors that have no memory."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from model.layout import Mask
from model.maskfeat import MaskFeat


class _Flash(TorchFunctionMode):
    """Attention that keeps its inputs, its output and a number a query, as on a GPU, and not all weights."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention and len(args) == 3:
            return torch.ops.aten._scaled_dot_product_flash_attention(*args)[0]
        return func(*args, **(kwargs or {}))


def activation_bytes(model: MaskFeat, masked: int) -> int:
    """Count the bytes that the forward pass of one input keeps for the backward pass, without a compiler.

    This is less than the peak of a step, which also has what is computed on the way.

    Args:
        model: on torch's meta device, in the precision that it is trained in; checkpoints its blocks or does not.
        masked: predictions that a mask hides.
    """
    kept: dict[int, Tensor] = {}  # by memory: of what several operations keep there is one copy

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    view, weights = model.view, {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    with torch.device("meta"):
        inputs = torch.empty(1, *view.input_shape, dtype=next(model.parameters()).dtype)
        cells = torch.empty(1, *view.mask_layout.shape, dtype=torch.bool)
        mask = Mask(cells, torch.empty(masked, dtype=torch.int64))
        with _Flash(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.train()(inputs, mask)
    return sum(tensor.untyped_storage().nbytes() for memory, tensor in kept.items() if memory not in weights)
