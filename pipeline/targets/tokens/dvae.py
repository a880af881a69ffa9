"""DALL-E's tokens of patches, as in BEiT and in MaskFeat's comparison of targets.

Source: Bao et al., "BEiT: BERT Pre-Training of Image Transformers", ICLR 2022. There, the tokenizer sees the same crop
at 8 pixels per patch, resized from the original image; here, the model's crop is resized.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.dvae import STRIDE, load_dvae
from model.layout import Mask
from pipeline.targets.classes import palette
from pipeline.targets.target import Computing, Predictions
from shards.files import sha256_of


class Dvae:
    """The `Tokenizer` of a dVAE's encoder.

    Args:
        file: weights of the encoder, see `load_dvae`.
        predictions: those of the model.
        computing: the network computes in `dtype`, except its last layer.

    Raises:
        WeightsError: the file cannot be used.
    """

    def __init__(self, file: Path, predictions: Predictions, computing: Computing) -> None:
        network = load_dvae(file)
        self.size = network.tokens
        self.identity: dict[str, Any] = {"target.tokenizer": sha256_of(file)}
        grid = predictions.layout
        self._side = grid.rows * STRIDE, grid.columns * STRIDE
        network.to(computing.device)
        network.compute_in(computing.dtype)
        self._dtype = computing.dtype
        self._network = torch.compile(network, dynamic=False) if computing.compile_teacher else network

    @torch.no_grad()
    def ids(self, inputs: Tensor, mask: Mask) -> Tensor:
        """See `Tokenizer`."""
        pixels = inputs.float() / 255
        if inputs.shape[2:] != self._side:
            pixels = F.interpolate(pixels, self._side, mode="bicubic", antialias=True).clamp(0, 1)
        logits: Tensor = self._network(pixels.to(self._dtype))
        return logits.argmax(1).flatten()[mask.indices]

    def paint(self, inputs: Tensor, ids: Tensor) -> Tensor:
        """See `Tokenizer`: one colour per id."""
        return palette(self.size).to(ids.device)[ids].permute(0, 3, 1, 2)
