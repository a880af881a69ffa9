"""Convert clips to images for targets: a prediction for several frames describes the first of them."""

from torch import Tensor

from model.layout import Mask, spread
from pipeline.targets.target import Predictions


def described_frames(inputs: Tensor, predictions: Predictions) -> Tensor:
    """Return the described frames as images: frames 0, 2, 4, ... of clips, if a prediction covers two frames.

    Args:
        inputs: uint8 images (B, 3, H, W), which are returned unchanged, or clips (B, 3, frames, H, W).
        predictions: those of the model.

    Returns:
        uint8 (B * predictions.layout.frames, 3, H, W), clip by clip.
    """
    if inputs.ndim == 4:
        return inputs
    first = inputs[:, :, :: predictions.patch[0]]
    return first.transpose(1, 2).flatten(0, 1)


def mask_of_frames(mask: Mask, predictions: Predictions) -> Mask:
    """Return the mask of the result of `described_frames`, from that of images or clips. Indices are the same."""
    layout = predictions.layout
    return Mask(spread(mask.cells, layout).view(-1, layout.rows, layout.columns), mask.indices)
