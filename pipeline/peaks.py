"""Published peaks of GPUs, with which a rate becomes a share of what the hardware allows."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Peak:
    """Peaks of one GPU: TFLOP/s of dense bf16 matrix products, and TB/s of its memory. From NVIDIA's data sheets."""

    name: str
    tflops: float
    memory: float


# By what `torch.cuda.get_device_name` says; the first that matches.
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
    """Return the peak of this machine's GPU; None where it is not known, or there is no GPU."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((found for name, found in PEAKS.items() if name in device), None)


def mfu(images_per_second: float, flops: int, ranks: int, dtype: torch.dtype) -> float | None:
    """Return the share of the peak that all ranks together reach (MFU); None where the peak is not known.

    Peaks are those of 16-bit numbers, so it is not known in fp32 either.

    Args:
        images_per_second: inputs a second over all ranks.
        flops: to train on one input.
        dtype: that the model computes in.
    """
    if dtype == torch.float32 or (gpu := peak()) is None:
        return None
    return images_per_second * flops / (ranks * gpu.tflops * 1e12)
