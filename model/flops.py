"""Count the operations in the matrix products of one input."""

from model.maskfeat import MaskFeat


def forward_macs(model: MaskFeat, masked: int) -> int:
    """Count the multiply-adds of one input's forward pass, with `masked` predictions."""
    if model.decoder is None:
        head: int = masked * model.head.weight.numel()
        return model.view.macs() + head
    visible = model.view.token_layout.cells - masked
    decoder: int = model.decoder.macs(visible, masked)
    return model.view.macs(visible) + decoder


def training_flops(model: MaskFeat, masked: int) -> int:
    """Count the FLOP of training on one input, with `masked` predictions.

    Two per multiply-add, with twice as many multiply-adds in the backward pass as in the forward pass. What activation
    checkpointing recomputes does not count, as is usual for model FLOPs utilisation (MFU).
    """
    return 6 * forward_macs(model, masked)
