"""What a matrix product and a copy reach on this hardware."""

from collections.abc import Callable

import torch


def synchronise(device: torch.device) -> None:
    """Wait until a device has done all it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_product(device: torch.device, dtype: torch.dtype, times: int) -> Callable[[], int]:
    """Multiply square matrices so many times; returns the FLOP of that. 8,192 a side on a GPU, 1,024 on a CPU."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    product = torch.empty_like(a)

    def run() -> int:
        for _ in range(times):
            torch.mm(a, b, out=product)
        synchronise(device)
        return times * 2 * side**3

    return run
