"""MaskFeat around a timm vision transformer.

Algorithm: Wei et al., "Masked Feature Prediction for Self-Supervised Visual Pre-Training", CVPR 2022. Masked patch
embeddings are replaced by one learned token, the whole sequence is encoded, and a linear head describes what was
under the masked patches.
"""

import difflib
import math
import re
from typing import Any, Literal, TypeAlias

import timm
import torch
from timm.models import Beit, VisionTransformer, checkpoint, is_model_in_modules
from torch import Tensor, nn

PositionInit = Literal["random", "sincos"]
Encoder: TypeAlias = VisionTransformer | Beit


def build_encoder(name: str, image_size: int, classes: int = 0, /, **options: Any) -> Encoder:
    """A timm vision transformer whose pooled feature is the mean of its patch tokens.

    Without a head its final LayerNorm sits before the pooling, where MaskFeat trains it, else behind it; the class
    token is kept, as in the published weights, though no loss of MaskFeat's reaches its output.

    Args:
        name: any timm model that is a `VisionTransformer` or, with relative positions, a `Beit`.
        image_size: side in pixels.
        classes: of its head; 0: it has none.
        options: passed on to timm, e.g. `embed_dim`, `depth`, `num_heads`, `drop_path_rate`.

    Raises:
        ValueError: no such model, or it is no plain vision transformer.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name[:100], timm.list_models(), n=5)
        raise ValueError(f"timm has no model {name[:100]!r}; near it: {', '.join(near) or 'see timm.list_models()'}")
    norm_behind_pooling = "use_fc_norm" if is_model_in_modules(name, ["beit"]) else "fc_norm"
    try:
        encoder = timm.create_model(
            name,
            img_size=image_size,
            num_classes=classes,
            global_pool="avg",
            **{norm_behind_pooling: classes > 0},
            **options,
        )
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown and unknown[1] in options:
            raise ValueError(f"{name} has no option {unknown[1]}: leave it out") from error
        encoder = None
    if not (isinstance(encoder, Beit) or (isinstance(encoder, VisionTransformer) and encoder.pos_embed is not None)):
        raise ValueError(f"{name!r} is not a plain vision transformer: choose one like vit_base_patch16_224")
    if 0 in encoder.patch_embed.grid_size:
        raise ValueError(f"a patch of {encoder.patch_embed.patch_size[0]} pixels is larger than an image")
    return encoder


class MaskFeat(nn.Module):
    """Predicts `target_width` numbers for every masked patch.

    Args:
        encoder: as `build_encoder` made it; its weights are initialised anew.
        target_width: numbers that describe a patch; 108 for HOG of 16-pixel patches.
        position_init: "random" as in the paper, or "sincos", a 2-D sine-cosine table as a learnable start, with which
            small models on short schedules leave the mean predictor's plateau much sooner.

    Attributes:
        grid: rows and columns of patches.
        patch: side of a patch in pixels.
    """

    def __init__(
        self,
        encoder: Encoder,
        target_width: int = 108,
        position_init: PositionInit = "random",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.grid: tuple[int, int] = encoder.patch_embed.grid_size
        self.patch: int = encoder.patch_embed.patch_size[0]
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.embed_dim))
        self.head = nn.Linear(encoder.embed_dim, target_width)
        initialise(self, encoder, position_init, self.mask_token)

    def forward(self, images: Tensor, mask: Tensor, masked: int | None = None) -> Tensor:
        """Predictions for the masked patches.

        Args:
            images: normalised floats (B, 3, H, W).
            mask: bool (B, rows, columns), True where the model must not see.
            masked: how many patches `mask` covers in all. Given, shapes are static and the device is not waited for.

        Returns:
            (masked, target_width), row-major within an image, image by image.
        """
        encoder = self.encoder
        x = encoder.patch_embed(images)  # (B, patches, width)
        x = torch.where(mask.flatten(1)[..., None], self.mask_token.to(x.dtype), x)
        x = _encode_beit(encoder, x) if isinstance(encoder, Beit) else _encode(encoder, x)
        x = x[:, encoder.num_prefix_tokens :].flatten(0, 1)
        predictions: Tensor = self.head(x[masked_index(mask, masked)])
        return predictions


def initialise(model: nn.Module, encoder: Encoder, position_init: PositionInit, *tokens: Tensor) -> None:
    """Truncated normals of 0.02 for weights and tokens, as in the published code; zeros for biases.

    Args:
        model: all of it, the encoder among it.
        position_init: see `MaskFeat`.
        tokens: those that the encoder does not have.

    Raises:
        ValueError: there are no absolute positions to initialise so.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for token in [*tokens, encoder.cls_token, getattr(encoder, "reg_token", None), encoder.pos_embed]:
        if token is not None:
            nn.init.trunc_normal_(token, std=0.02)
    if position_init == "sincos":
        if encoder.pos_embed is None:
            raise ValueError("position_init=sincos needs an encoder with absolute positions: set it to random")
        table = sincos_positions(encoder.patch_embed.grid_size, encoder.embed_dim)
        with torch.no_grad():
            encoder.pos_embed[0, -len(table) :] = table


def _encode(encoder: VisionTransformer, x: Tensor) -> Tensor:
    """What timm's `forward_features` makes of patch embeddings (B, patches, width): (B, prefix + patches, width)."""
    x = encoder.norm_pre(encoder.patch_drop(encoder._pos_embed(x)))
    encoded: Tensor = encoder.norm(_through_blocks(encoder, x))
    return encoded


def _encode_beit(encoder: Beit, x: Tensor) -> Tensor:
    """The same for BEiT, whose relative positions each block has, or all share."""
    x = torch.cat([encoder.cls_token.expand(len(x), -1, -1), x], dim=1)
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    x = encoder.pos_drop(x)
    shared = None if encoder.rel_pos_bias is None else encoder.rel_pos_bias()
    encoded: Tensor = encoder.norm(_through_blocks(encoder, x, shared_rel_pos_bias=shared))
    return encoded


def _through_blocks(encoder: Encoder, x: Tensor, **biases: Tensor | None) -> Tensor:
    for block in encoder.blocks:
        x = checkpoint(block, x, **biases) if encoder.grad_checkpointing else block(x, **biases)
    return x


def masked_index(mask: Tensor, masked: int | None = None) -> Tensor:
    """Where a mask (B, rows, columns) is True in the flattened (B * rows * columns): int64 (masked,), ascending."""
    if masked is None:
        return mask.flatten().nonzero()[:, 0]
    return torch.nonzero_static(mask.flatten(), size=masked)[:, 0]


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """2-D sine-cosine position embedding, float32 (rows * columns, width).

    The first half of the width encodes the column, the second the row, each as sines then cosines of frequencies
    10000^(-i / (width/4)), as in the code of He et al., "Masked Autoencoders Are Scalable Vision Learners".

    Raises:
        ValueError: the width is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"sine-cosine positions need a width that is a multiple of 4, not {width}")
    frequency = torch.exp(torch.arange(width // 4) * (-math.log(10_000) / (width // 4)))
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = torch.stack([x.flatten(), y.flatten()])[..., None] * frequency  # (2, patches, width / 4)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).permute(1, 0, 2).flatten(1)
