"""The registry of networks by name, and of their adapters.

To add a family of encoders, write a module beside this one, and add a line in `ENCODERS` and in `build_network`.
"""

from collections.abc import Callable
from typing import Any

from timm.models import Beit, Eva, VisionTransformer
from torch import nn
from torchvision.models.video import MViT

from model.encoders.encoder import Encoder
from model.encoders.eva import EvaEncoder
from model.encoders.mvit import SIZES, build_mvit
from model.encoders.mvit_encoder import MViTEncoder
from model.encoders.timm_vit import TimmEncoder, build_encoder
from model.encoders.tubelet import TubeletEncoder, TubeletViT, build_tubelet_vit
from model.size import Sides

ENCODERS: dict[type[nn.Module], Callable[[Any], Encoder]] = {
    VisionTransformer: TimmEncoder,
    Beit: TimmEncoder,
    Eva: EvaEncoder,
    MViT: MViTEncoder,
    TubeletViT: TubeletEncoder,
}


def build_network(
    name: str, image_size: Sides, frames: int | None = None, classes: int = 0, /, **options: Any
) -> nn.Module:
    """Build a network that `encoder_of` knows.

    Args:
        name: a timm vision transformer, whose blocks make a tubelet ViT for clips; or for clips
            one of `SIZES`: mvit_v2_s, mvit_v2_l, or mvit_v2 with options.
        image_size: the side of square inputs, or height and width, in pixels.
        frames: frames per clip; 1: single frames as inputs (B, 3, 1, H, W); None: images (B, 3, H, W).
        classes: outputs of the head; 0: the network does not have a head.
        options: see `build_encoder` and `model.encoders.mvit.Options`.

    Raises:
        ValueError: the network is unknown, or its options do not fit each other.
    """
    network: nn.Module
    if name in SIZES:
        if frames is None:
            raise ValueError(f"{name} takes clips: set the number of frames, to 1 for images")
        network = build_mvit(name, image_size, frames, classes, **options)
    elif frames is None:
        network = build_encoder(name, image_size, classes, **options)
    else:
        network = build_tubelet_vit(name, image_size, frames, classes, **options)
    return network


def encoder_of(network: nn.Module) -> Encoder:
    """Return the adapter of a network. Raises ValueError for a network without one."""
    for family, adapter in ENCODERS.items():
        if isinstance(network, family):
            return adapter(network)
    known = ", ".join(family.__name__ for family in ENCODERS)
    raise ValueError(f"{type(network).__name__} is not an encoder that MaskFeat can train: choose one of {known}")
