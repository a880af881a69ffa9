"""What an input costs, by arithmetic: the operations of its matrix products."""

from model.maskfeat import MaskFeat


def forward_macs(model: MaskFeat, masked: int) -> int:
    """Count the multiply-adds of one input's forward pass, `masked` of whose patches are described."""
    if model.decoder is None:
        head: int = masked * model.head.weight.numel()
        return model.view.macs() + head
    visible = model.view.token_layout.cells - masked
    decoder: int = model.decoder.macs(visible, masked)
    return model.view.macs(visible) + decoder


def training_flops(model: MaskFeat, masked: int) -> int:
    """Count the FLOP to train on one input, `masked` of whose patches are described.

    Two for every multiply-add, of which the backward pass has twice those of the forward pass. What activation
    checkpointing computes again does not count, as is usual for the share of a peak (MFU).
    """
    return 6 * forward_macs(model, masked)
