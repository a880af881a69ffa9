"""The interface of a tokenizer: what turns patches into one of a few ids."""

from typing import Any, Protocol

from torch import Tensor

from model.layout import Mask


class Tokenizer(Protocol):
    """Names the content of patches.

    Attributes:
        size: how many ids there are.
        identity: all that decides them besides the pixels, JSON.
    """

    size: int
    identity: dict[str, Any]

    def ids(self, inputs: Tensor, mask: Mask) -> Tensor:
        """Return the ids of the masked patches of uint8 (B, 3, H, W): int64 (masked,)."""
        ...

    def paint(self, inputs: Tensor, ids: Tensor) -> Tensor:
        """Render ids, int64 (B, rows, columns), as colours in [0, 1]: float (B, 1 or 3, height, width)."""
        ...
