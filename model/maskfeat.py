"""MaskFeat around a vision transformer.

Algorithm: Wei et al., "Masked Feature Prediction for Self-Supervised Visual Pre-Training", CVPR 2022. Masked patch
embeddings are replaced by one learned token, the whole sequence is encoded, and a linear head predicts the targets
of the masked patches. With a decoder, only the visible patches are encoded, which costs a fraction; see
`model.decoders`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from model.decoders import DecoderKind, build_decoder, visible_cells
from model.encoders.encoder import PositionInit, draw, view_of
from model.encoders.registry import encoder_of
from model.encoders.timm_vit import build_encoder as build_encoder
from model.layout import Mask, make_mask, spread


class MaskFeat(nn.Module):
    """Predicts `target_width` numbers for every masked patch.

    Args:
        encoder: a network that `encoder_of` knows, such as `build_encoder` builds; its weights are initialised anew.
        target_width: numbers in a patch's target; 108 for HOG of 16-pixel patches.
        position_init: "random" as in the paper; "sincos", a 2-D sine-cosine table as a trainable start, with which
            small models on short schedules leave the mean predictor's plateau much sooner; or "fixed", the same table,
            not trained.
        decoder: None as in the paper; "light" or "local": encode visible patches only, and predict the others by the
            decoder.
        decoder_width: width of the decoder's tokens.

    Attributes:
        encoder: the network, whose weights are exported.
        view: its `Encoder`, which has the grids of masks, tokens and predictions.
        grid: shape of one sample's mask, such as (rows, columns).
        patch: side of one prediction in pixels.
        target_width: as above.

    Raises:
        ValueError: the decoder or the positions do not fit the encoder.
    """

    def __init__(
        self,
        encoder: Any,
        target_width: int = 108,
        position_init: PositionInit = "random",
        decoder: DecoderKind | None = None,
        decoder_width: int = 256,
    ) -> None:
        super().__init__()
        self.encoder, self.target_width = encoder, target_width
        self.view = encoder_of(encoder)
        self.grid, self.patch = self.view.mask_layout.shape, self.view.prediction_patch[1]
        self.decoder: Any = None
        if decoder:
            self.decoder = build_decoder(decoder, self.view, decoder_width, target_width)
        else:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, self.view.embedding_width))
            self.head = nn.Linear(self.view.width, target_width)
        initialise_layers(self)
        for name, parameter in self.named_parameters():
            if name.endswith("mask_token"):
                draw(parameter)
        self.view.initialise(position_init)

    def forward(self, inputs: Tensor, mask: Tensor | Mask) -> Tensor:
        """Predict the targets of the masked patches.

        Args:
            inputs: normalised floats (B, 3, H, W), or clips (B, 3, frames, H, W); images beside clips have one frame.
            mask: bool (B, rows, columns), or for clips (B, frames, rows, columns), True where hidden from the model, on
            a grid that divides that of the tokens; or a `Mask`, with which shapes are static and nothing waits for the
            device. There may be several consecutive masks of each input. A model with a decoder needs equally many
            hidden cells in each; this is checked except for a `Mask`.

        Returns:
            (masked, target_width), mask by mask; within a mask frame by frame, row-major.
        """
        view = view_of(self.view, inputs)
        hidden = mask if isinstance(mask, Mask) else make_mask(mask, view.prediction_layout)
        repeats, rest = divmod(len(hidden.cells), len(inputs))
        if rest or not repeats:
            raise ValueError(f"{len(hidden.cells)} masks for {len(inputs)} inputs")
        if self.decoder is not None:
            masked = len(hidden.indices) // len(hidden.cells)
            if not isinstance(mask, Mask) and bool((mask.flatten(1).sum(1) != mask[0].sum()).any()):
                raise ValueError("a model with a decoder needs masks that hide equally many cells")
            visible = visible_cells(spread(hidden.cells, view.token_layout), masked)
            encoded = view.encode_visible(inputs, visible, self.decoder.taps)
            described: Tensor = self.decoder(encoded, visible, hidden.indices, view.token_layout.cells)
            return described
        x = view.embed(inputs)  # (B, token cells, embedding width)
        if repeats > 1:
            x = x.repeat_interleave(repeats, dim=0)
        x = torch.where(spread(hidden.cells, view.token_layout)[..., None], self.mask_token.to(x.dtype), x)
        x = view.encode(x).flatten(0, 1)
        predictions: Tensor = self.head(x[hidden.indices])
        return predictions


def initialise_layers(model: nn.Module) -> None:
    """Initialise all layers as the published code does: weights from a truncated normal of 0.02, biases to zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
