"""What the queries of an encoder's blocks attend to."""

import torch
from torch import Tensor, nn

from model.encoders.encoder import Pool
from model.encoders.timm_vit import TimmViT
from pipeline.pixels import IMAGENET, Statistics, normalise


def attention_weights(encoder: TimmViT, images: Tensor, statistics: Statistics = IMAGENET) -> list[Tensor]:
    """Of every block, float32 (B, heads, tokens, tokens): of each query, the shares of the keys.

    Args:
        images: uint8 (B, 3, H, W).
        statistics: of the pixels that the encoder takes.
    """
    layers = [block.attn for block in encoder.blocks]
    fused, seen = [layer.fused_attn for layer in layers], []

    def keep(_: nn.Module, inputs: tuple[Tensor], __: Tensor) -> None:
        seen.append(inputs[0].float())

    hooks = [layer.attn_drop.register_forward_hook(keep) for layer in layers]
    try:
        for layer in layers:
            layer.fused_attn = False  # fused, its weights are never there to be seen
        with torch.no_grad():
            encoder.forward_features(normalise(images, torch.float32, statistics))
    finally:
        for layer, hook, was in zip(layers, hooks, fused, strict=True):
            hook.remove()
            layer.fused_attn = was
    return seen


def looked_at(weights: Tensor, encoder: TimmViT, pool: Pool) -> Tensor:
    """Where a block of these weights looks for what is pooled: float32 (B, rows, columns), mean of the heads.

    Of the patches it is the mean over their queries; of the class token it is its own query.
    """
    heads, prefix = weights.mean(1), encoder.num_prefix_tokens
    looked = heads[:, 0] if pool == "class" else heads[:, prefix:].mean(1)
    return looked[:, prefix:].reshape(-1, *encoder.patch_embed.grid_size)


def attended_tokens(weights: Tensor) -> float:
    """How many tokens a query attends to: exp of the mean entropy, from 1, one alone, to all of them, all alike.

    Where it is near 1 in most blocks, attention has collapsed: hardly a gradient passes through its softmax, as after
    training at too high a rate (Zhai et al. 2023, "Stabilizing Transformer Training by Preventing Attention Entropy
    Collapse").
    """
    return float(torch.special.entr(weights).sum(-1).mean().exp())
