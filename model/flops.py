"""What an image costs, by arithmetic: the operations of its matrix products."""

from torch import nn

from model.maskfeat import Encoder, MaskFeat


def encoder_macs(encoder: Encoder, patches: int) -> int:
    """Multiply-adds of the matrix products of an encoder that looks at so many patches of one image."""
    tokens: int = patches + encoder.num_prefix_tokens
    embedding: int = patches * encoder.patch_embed.proj.weight.numel()
    linear: int = sum(m.weight.numel() for m in encoder.blocks.modules() if isinstance(m, nn.Linear))
    attention: int = len(encoder.blocks) * 2 * tokens**2 * encoder.embed_dim  # queries by keys, weights by values
    return embedding + tokens * linear + attention


def forward_macs(model: MaskFeat, masked: int) -> int:
    """Multiply-adds of the matrix products of one image's forward pass, `masked` of whose patches are described."""
    head: int = masked * model.head.weight.numel()
    return encoder_macs(model.encoder, model.grid[0] * model.grid[1]) + head


def training_flops(model: MaskFeat, masked: int) -> int:
    """FLOP to train on one image: two a multiply-add, of which the backward pass has twice those of the forward pass.

    What activation checkpointing computes again does not count, as is usual for the share of a peak (MFU).
    """
    return 6 * forward_macs(model, masked)
