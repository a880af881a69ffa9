"""Decode images and videos to pixels on the device."""

import importlib
from typing import Any

_DECODERS = ("CpuDecoder", "Crops", "Decoded", "Decoder", "GpuDecoder", "decoder_for")


def __getattr__(name: str) -> Any:
    """Import a decoder on first use, so that `libraries` returns versions without loading DALI or torch."""
    if name not in _DECODERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.decoder"), name)
