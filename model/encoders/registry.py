"""Which adapter a network has. A new family of encoders is one module beside this one and one line here."""

from collections.abc import Callable
from typing import Any

from timm.models import Beit, VisionTransformer
from torch import nn

from model.encoders.encoder import Encoder
from model.encoders.timm_vit import TimmEncoder

ENCODERS: dict[type[nn.Module], Callable[[Any], Encoder]] = {VisionTransformer: TimmEncoder, Beit: TimmEncoder}


def encoder_of(network: nn.Module) -> Encoder:
    """Return the adapter of a network. Raises ValueError for a network that has none."""
    for family, adapter in ENCODERS.items():
        if isinstance(network, family):
            return adapter(network)
    known = ", ".join(family.__name__ for family in ENCODERS)
    raise ValueError(f"{type(network).__name__} is not an encoder that MaskFeat can train: choose one of {known}")
