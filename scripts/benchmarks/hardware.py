"""The limits of the hardware: published peaks of GPUs, and the speed of a matrix product and a copy here."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Peak:
    """The peak of one GPU: TFLOP/s of dense bf16 matrix products, and TB/s of its memory, from NVIDIA's data sheets."""

    name: str
    tflops: float
    memory: float


# By `torch.cuda.get_device_name`; the first match counts.
PEAKS = {
    "H100 PCIe": Peak("H100 PCIe", 756, 2.0),
    "H100 NVL": Peak("H100 NVL", 835, 3.9),
    "H100": Peak("H100 SXM", 989, 3.35),
    "GH200": Peak("GH200", 989, 4.0),
    "H200": Peak("H200 SXM", 989, 4.8),
    "A100-SXM4-80GB": Peak("A100 SXM 80 GB", 312, 2.039),
    "A100-SXM4-40GB": Peak("A100 SXM 40 GB", 312, 1.555),
}


def peak() -> Peak | None:
    """Return the peak of this machine's GPU; None where it is unknown, or there is none."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((found for name, found in PEAKS.items() if name in device), None)


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
