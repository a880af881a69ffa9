"""Count the memory that training on one input takes besides the weights, with tensors on the meta device."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from model.layout import Mask
from model.maskfeat import MaskFeat


class _Flash(TorchFunctionMode):
    """Attention that keeps its inputs, its output and one number per query, as on a GPU, instead of all weights."""

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

    This is less than the peak of a step, which also has temporary tensors.

    Args:
        model: on torch's meta device, in the precision of its training, with or without activation checkpointing.
        masked: predictions that a mask hides.
    """
    kept: dict[int, Tensor] = {}  # by memory, since several operations may keep the same tensor

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
