"""A predictor of clips without learning: it copies the nearest visible frame to each hidden cell.

Consecutive frames are much alike. A model whose loss is higher than that of this copy has not learned to use time,
even where it is far better than the mean target.
"""

import torch
from torch import Tensor

from model.layout import Layout, Mask, spread


def copied(targets: Tensor, mask: Mask, layout: Layout, otherwise: Tensor) -> Tensor:
    """Predict the hidden cells of clips from their visible ones.

    Args:
        targets: targets of all cells, (B, frames, rows, columns, width).
        mask: mask of the clips.
        layout: grid of the targets.
        otherwise: (width,), the prediction where all frames of a place are hidden.

    Returns:
        (masked, width), in the order of `mask.indices`. Of two equally near frames, the earlier one is copied.
    """
    frames, places = layout.frames, layout.rows * layout.columns
    hidden = spread(mask.cells, layout).view(-1, frames, places)
    time = torch.arange(frames, device=hidden.device)
    later = time[None, :] - time[:, None]  # (from frame, to frame)
    distance = 2 * later.abs() + (later > 0)  # all distances differ
    unseen = hidden[:, None] * (2 * frames)
    nearest = (distance[None, :, :, None] + unseen).argmin(2).flatten()[mask.indices]  # frame, int64 (masked,)

    clip, place = mask.indices // (frames * places), mask.indices % places
    source = targets.flatten(0, 3)[(clip * frames + nearest) * places + place]
    never = hidden.all(1)[clip, place]
    return torch.where(never[:, None], otherwise, source)
