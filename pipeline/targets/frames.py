"""Clips for targets, which describe images: a prediction about a few frames is about the first of them."""

from torch import Tensor

from model.layout import Mask, spread
from pipeline.targets.target import Predictions


def described_frames(inputs: Tensor, predictions: Predictions) -> Tensor:
    """Return the frames that are described, as images: of clips 0, 2, 4, ..., if a prediction is about two frames.

    Args:
        inputs: uint8 images (B, 3, H, W), which are returned as they are, or clips (B, 3, frames, H, W).
        predictions: of the model.

    Returns:
        uint8 (B * predictions.layout.frames, 3, H, W), clip by clip.
    """
    if inputs.ndim == 4:
        return inputs
    first = inputs[:, :, :: predictions.patch[0]]
    return first.transpose(1, 2).flatten(0, 1)


def mask_of_frames(mask: Mask, predictions: Predictions) -> Mask:
    """Return the mask of what `described_frames` returns, from that of images or clips. Indices are the same."""
    layout = predictions.layout
    return Mask(spread(mask.cells, layout).view(-1, layout.rows, layout.columns), mask.indices)
