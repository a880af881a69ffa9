"""Compute the attention of an encoder's blocks."""

import torch
from torch import Tensor

from model.encoders.encoder import Encoder, Pool
from pipeline.pixels import IMAGENET, Statistics, normalise


def attention_weights(encoder: Encoder, inputs: Tensor, statistics: Statistics = IMAGENET) -> list[Tensor]:
    """Return the attention of every block, see `Encoder.attention`.

    Args:
        encoder: an encoder of images or clips.
        inputs: uint8 (B, 3, H, W), or clips (B, 3, frames, H, W).
        statistics: normalisation of the encoder's inputs.
    """
    with torch.no_grad():
        return encoder.attention(normalise(inputs, torch.float32, statistics))


def looked_at(weights: Tensor, encoder: Encoder, pool: Pool) -> Tensor:
    """Return the last block's mean attention over heads for the pooled feature: float32 (B, rows, columns) of its keys.

    For clips it is (B, frames, rows, columns). For the mean of the patches it is the mean over their queries; for the
    class token it is that of its own query.

    Args:
        weights: attention of the last block, see `attention_weights`.
        encoder: the encoder.
        pool: the kind of pooling.
    """
    heads, prefix = weights.mean(1), encoder.prefix
    looked = heads[:, 0] if pool == "class" else heads[:, prefix:].mean(1)
    return looked[:, prefix:].reshape(-1, *encoder.key_layouts[-1].shape)


def attended_tokens(weights: Tensor) -> float:
    """Return how many tokens a query attends to: exp of the mean entropy, from 1, a single one, to all of them, evenly.

    Where it is near 1 in most blocks, attention has collapsed: hardly any gradient passes through its softmax, as after
    training at too high a learning rate (Zhai et al. 2023, "Stabilizing Transformer Training by Preventing Attention
    Entropy Collapse").
    """
    return float(torch.special.entr(weights).sum(-1).mean().exp())
