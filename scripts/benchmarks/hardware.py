"""The speed of a matrix product and a copy on this hardware."""

from collections.abc import Callable

import torch


def synchronise(device: torch.device) -> None:
    """Wait until a device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_product(device: torch.device, dtype: torch.dtype, times: int) -> Callable[[], int]:
    """Multiply square matrices `times` times; return the FLOP. The side is 8,192 on a GPU, 1,024 on a CPU."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    product = torch.empty_like(a)

    def run() -> int:
        for _ in range(times):
            torch.mm(a, b, out=product)
        synchronise(device)
        return times * 2 * side**3

    return run
