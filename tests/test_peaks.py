"""The share of a GPU's peak that a rate is."""

import pytest
import torch

from pipeline import peaks
from pipeline.peaks import mfu, peak


def test_a_gpu_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, tflops in {"NVIDIA H100 PCIe": 756, "NVIDIA H100 80GB HBM3": 989, "NVIDIA H200": 989}.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        found = peak()
        assert found and found.tflops == tflops
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert peak() is None


def test_mfu_is_the_share_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """ViT-B at 105.7 GFLOP an image, say, at 2,000 images/s a GPU, is 211.4 TFLOP/s of 989."""
    monkeypatch.setattr(peaks, "peak", lambda: peaks.PEAKS["H100"])
    assert mfu(16_000, 105_700_000_000, 8, torch.bfloat16) == pytest.approx(211.4 / 989)
    assert mfu(16_000, 105_700_000_000, 8, torch.float32) is None
    monkeypatch.setattr(peaks, "peak", lambda: None)
    assert mfu(16_000, 105_700_000_000, 8, torch.bfloat16) is None
