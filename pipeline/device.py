"""The precisions of a device, and the copy from host memory to it during a step."""

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # by `engine.precision`


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor in host memory to `device` without waiting for it.

    A CUDA device is reached through pinned memory: a copy from pageable memory would make the host wait, even with
    `non_blocking`. torch keeps the pinned memory until the copy is done. On a CPU this is the tensor itself.
    """
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)
