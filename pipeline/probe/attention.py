"""What the queries of an encoder's blocks attend to."""

import torch
from torch import Tensor

from model.encoders.encoder import Encoder, Pool
from pipeline.pixels import IMAGENET, Statistics, normalise


def attention_weights(encoder: Encoder, inputs: Tensor, statistics: Statistics = IMAGENET) -> list[Tensor]:
    """Return the attention of every block, see `Encoder.attention`.

    Args:
        encoder: of images or clips.
        inputs: uint8 (B, 3, H, W), or clips (B, 3, frames, H, W).
        statistics: of the pixels that the encoder takes.
    """
    with torch.no_grad():
        return encoder.attention(normalise(inputs, torch.float32, statistics))


def looked_at(weights: Tensor, encoder: Encoder, pool: Pool) -> Tensor:
    """Return where the last block looks for what is pooled: float32 (B, rows, columns) of its keys, mean of the heads.

    Of clips it is (B, frames, rows, columns). Of the patches it is the mean over their queries; of the class token it
    is its own query.

    Args:
        weights: of the last block, see `attention_weights`.
        encoder: of which they are.
        pool: what is pooled.
    """
    heads, prefix = weights.mean(1), encoder.prefix
    looked = heads[:, 0] if pool == "class" else heads[:, prefix:].mean(1)
    return looked[:, prefix:].reshape(-1, *encoder.key_layouts[-1].shape)


def attended_tokens(weights: Tensor) -> float:
    """Return how many tokens a query attends to: exp of the mean entropy, from 1, one alone, to all of them, all alike.

    Where it is near 1 in most blocks, attention has collapsed: hardly a gradient passes through its softmax, as after
    training at too high a rate (Zhai et al. 2023, "Stabilizing Transformer Training by Preventing Attention Entropy
    Collapse").
    """
    return float(torch.special.entr(weights).sum(-1).mean().exp())
