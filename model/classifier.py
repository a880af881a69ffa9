"""A classifier on a timm vision transformer, as MaskFeat's encoders are fine-tuned.

Algorithm: Wei et al., "Masked Feature Prediction for Self-Supervised Visual Pre-Training", CVPR 2022, and its published
code: mean of the patch tokens, a LayerNorm that pre-training has not had, and a linear head that starts near zero.
"""

from typing import cast

import torch
from torch import Tensor, nn

from model.maskfeat import Encoder, PositionInit, initialise

HEAD_SCALE = 0.001  # of the head's first weights


class Classifier(nn.Module):
    """Names the class of an image.

    Args:
        encoder: as `build_encoder` made it, with a head; its weights are initialised anew.
        position_init: see `MaskFeat`.

    Attributes:
        grid: rows and columns of patches.
        patch: side of a patch in pixels.
    """

    def __init__(self, encoder: Encoder, position_init: PositionInit = "random") -> None:
        super().__init__()
        self.encoder = encoder
        self.grid: tuple[int, int] = encoder.patch_embed.grid_size
        self.patch: int = encoder.patch_embed.patch_size[0]
        initialise(self, encoder, position_init)
        with torch.no_grad():
            cast(nn.Linear, encoder.head).weight.mul_(HEAD_SCALE)

    def forward(self, images: Tensor) -> Tensor:
        """From normalised floats (B, 3, H, W) to logits (B, classes)."""
        logits: Tensor = self.encoder(images)
        return logits
