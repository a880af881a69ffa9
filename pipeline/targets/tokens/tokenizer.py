"""The interface of a tokenizer, which assigns one of a few ids to each patch."""

from typing import Any, Protocol

from torch import Tensor

from model.layout import Mask


class Tokenizer(Protocol):
    """Assigns an id to the content of patches.

    Attributes:
        size: number of ids.
        identity: everything that decides them besides the pixels, as JSON values.
    """

    size: int
    identity: dict[str, Any]

    def ids(self, inputs: Tensor, mask: Mask) -> Tensor:
        """Return the ids of the masked patches of uint8 (B, 3, H, W): int64 (masked,)."""
        ...

    def paint(self, inputs: Tensor, ids: Tensor) -> Tensor:
        """Render ids, int64 (B, rows, columns), as colours in [0, 1]: float (B, 1 or 3, height, width)."""
        ...
