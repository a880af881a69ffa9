"""What an image costs, by arithmetic: the operations of its matrix products."""

from torch import nn

from model.maskfeat import MaskFeat


def forward_macs(model: MaskFeat, masked: int) -> int:
    """Multiply-adds of the matrix products of one image's forward pass, `masked` of whose patches are described."""
    patches = model.grid[0] * model.grid[1]
    tokens: int = patches + model.encoder.num_prefix_tokens
    width: int = model.encoder.embed_dim
    embedding: int = patches * model.encoder.patch_embed.proj.weight.numel()
    linear: int = sum(m.weight.numel() for m in model.encoder.blocks.modules() if isinstance(m, nn.Linear))
    attention = len(model.encoder.blocks) * 2 * tokens**2 * width  # queries by keys, weights by values
    head = masked * model.head.weight.numel()
    return embedding + tokens * linear + attention + head


def training_flops(model: MaskFeat, masked: int) -> int:
    """FLOP to train on one image: two a multiply-add, of which the backward pass has twice those of the forward pass.

    What activation checkpointing computes again does not count, as is usual for the share of a peak (MFU).
    """
    return 6 * forward_macs(model, masked)
