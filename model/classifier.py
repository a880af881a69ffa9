"""A classifier on a vision transformer, for fine-tuning MaskFeat's encoders.

Algorithm: Wei et al., "Masked Feature Prediction for Self-Supervised Visual Pre-Training", CVPR 2022, and its published
code: mean of the patch tokens, a LayerNorm that pre-training does not have, and a linear head that starts near zero.
"""

from typing import Any

import torch
from torch import Tensor, nn

from model.encoders.encoder import PositionInit
from model.encoders.registry import encoder_of
from model.maskfeat import initialise_layers

HEAD_SCALE = 0.001  # scale of the head's initial weights and biases


class Classifier(nn.Module):
    """Predicts the class of an input.

    Args:
        encoder: as `build_encoder` built it, with a head; its weights are initialised anew.
        position_init: see `MaskFeat`.

    Attributes:
        encoder: the network, whose weights are exported.
        view: its `Encoder`.
    """

    def __init__(self, encoder: Any, position_init: PositionInit = "random") -> None:
        super().__init__()
        self.encoder = encoder
        self.view = encoder_of(encoder)
        initialise_layers(self)
        self.view.initialise(position_init)
        with torch.no_grad():
            for parameter in self.view.head.parameters():
                parameter.mul_(HEAD_SCALE)

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute logits (B, classes) from normalised floats (B, 3, H, W)."""
        logits: Tensor = self.encoder.head(self.view.pooled(inputs))
        return logits
