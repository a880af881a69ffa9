"""Small decoders for an encoder of visible patches only: they add the hidden patches and predict their targets.

Algorithm: asymmetric encoding is that of He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022. The
decoders are those of Wang et al., "Masked Image Modeling with Local Multi-Scale Reconstruction", CVPR 2023, section 3:
one transformer block each, at several depths of the encoder, finer ones at shallower blocks. Transposed convolutions of
2x2 with a stride of 2 never reach beyond their patch, so they are linear layers on the masked patches alone here.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from model.encoders.encoder import Encoder
from model.encoders.positions import sincos_cells
from model.encoders.timm_vit import blocks_macs
from model.layout import Layout

DecoderKind = Literal["light", "local"]

HEAD = 32  # width of an attention head
SCALES = (1 / 4, 1 / 2, 1, 2)  # sides of the cells that `LocalDecoder` describes, in patches, finest first


class Filling(nn.Module):
    """Puts encoded patches back into their grid, with a learned token in all other cells, and applies a block.

    Args:
        encoded_width: width of an encoded patch.
        width: of the tokens here, a multiple of `HEAD`.
        layout: the grid.
    """

    positions: Tensor

    def __init__(self, encoded_width: int, width: int, layout: Layout) -> None:
        super().__init__()
        self.project = nn.Linear(encoded_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(Block(width, width // HEAD, mlp_ratio=4, qkv_bias=True))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("positions", sincos_cells(layout, width), persistent=False)

    def forward(self, encoded: Tensor, visible: Tensor, cells: int) -> Tensor:
        """Return (B, cells, width) from (B, kept, encoded width) and their cells, int64 (B, kept).

        The cells are those of the grid, or those of its first frame for single frames beside clips.
        """
        x = self.project(encoded)
        positions, width = self.positions[:cells], self.positions.shape[1]
        tokens = self.mask_token.to(x.dtype).expand(len(x), cells, width)
        tokens = tokens.scatter(1, visible[..., None].expand(-1, -1, width), x)
        filled: Tensor = self.norm(self.blocks(tokens + positions.to(x.dtype)))
        return filled

    def macs(self, visible: int) -> int:
        """Count the multiply-adds of one input's matrix products."""
        cells, width = self.positions.shape
        return visible * self.project.weight.numel() + blocks_macs(self.blocks, cells, width)


class LightDecoder(nn.Module):
    """Predicts the targets of masked patches from the last block's output.

    Args:
        view: the encoder's view.
        width: of the decoder's tokens.
        target_width: numbers in a patch's target.

    Attributes:
        taps: blocks of the encoder whose outputs are decoded.
    """

    def __init__(self, view: Encoder, width: int, target_width: int) -> None:
        super().__init__()
        self.taps = (view.depth - 1,)
        self.filling = Filling(view.width, width, view.token_layout)
        self.head = nn.Linear(width, target_width)

    def forward(self, encoded: Sequence[Tensor], visible: Tensor, masked: Tensor, cells: int) -> Tensor:
        """Predict the targets of masked patches.

        Args:
            encoded: the outputs of the taps, (B, kept, encoded width) each.
            visible: int64 (B, kept), the cells of `encoded`.
            masked: int64 (masked,), indices of the other cells in the flattened (B * cells).
            cells: number of cells of an input.

        Returns:
            (masked, target width), in the order of `masked`.
        """
        described: Tensor = self.head(self.filling(encoded[0], visible, cells).flatten(0, 1)[masked])
        return described

    def macs(self, visible: int, masked: int) -> int:
        """Count the multiply-adds of one input's matrix products."""
        return self.filling.macs(visible) + masked * self.head.weight.numel()


class LocalDecoder(nn.Module):
    """Predicts masked patches at four scales, the finest from a shallow block and the coarsest from the last one.

    Args:
        view: the encoder's view, with at least four blocks and an even number of rows and columns.
        width: of the decoders' tokens, a multiple of 4.
        target_width: numbers in a patch's target at all `SCALES` together, equally many for each cell: for each scale
            the cells of a patch row-major; for the coarsest scale the cell of 2x2 patches that contains the patch.

    Attributes:
        taps: see `LightDecoder`.

    Raises:
        ValueError: the encoder has too few blocks or an odd grid, or the width does not match such cells.
    """

    def __init__(self, view: Encoder, width: int, target_width: int) -> None:
        super().__init__()
        layout = view.token_layout
        cells = [max(1, round(1 / scale)) ** 2 for scale in SCALES]
        numbers, rest = divmod(target_width, sum(cells))
        if rest or not numbers:
            raise ValueError("model.decoder=local predicts patches at four scales: set target.kind=hog_scales")
        if layout.rows % 2 or layout.columns % 2:
            raise ValueError(
                f"model.decoder=local predicts squares of 2x2 patches, which do not fill a grid of {layout}: "
                "change data.image_size"
            )
        self.taps, self._layout = spread_taps(view.depth), layout
        self.fillings: Any = nn.ModuleList(Filling(view.width, width, layout) for _ in SCALES)
        self.norms = nn.ModuleList(nn.LayerNorm(view.width) for _ in self.taps[:-1])  # the last one is normalised
        self.heads = nn.ModuleList(_refine(width, count, numbers) for count in cells)

    def forward(self, encoded: Sequence[Tensor], visible: Tensor, masked: Tensor, cells: int) -> Tensor:
        """See `LightDecoder.forward`; a patch's numbers are ordered (scale, number, cell row, cell column)."""
        parts = []
        for index, (tokens, filling, head) in enumerate(zip(encoded, self.fillings, self.heads, strict=True)):
            normed = self.norms[index](tokens) if index < len(self.norms) else tokens
            filled = filling(normed, visible, cells)
            if SCALES[index] > 1:
                parts.append(head(self._in_squares(filled))[self._square_of(masked)])
            else:
                parts.append(_row_major(head(filled.flatten(0, 1)[masked]), len(masked)))
        return torch.cat(parts, dim=1)

    def macs(self, visible: int, masked: int) -> int:
        """Count the multiply-adds of one input's matrix products."""
        total: int = sum(filling.macs(visible) for filling in self.fillings)
        for scale, head in zip(SCALES, self.heads, strict=True):
            times = self._layout.cells // 4 if scale > 1 else masked
            for layer in head.children():
                if isinstance(layer, nn.Linear):
                    total += times * layer.weight.numel()
                elif isinstance(layer, _Split):
                    times *= 4
        return total

    def _in_squares(self, tokens: Tensor) -> Tensor:
        """Average the tokens of 2x2 patches: (B, cells, width) -> (B * cells / 4, width)."""
        layout = self._layout
        squares = tokens.view(-1, layout.rows // 2, 2, layout.columns // 2, 2, tokens.shape[-1])
        return squares.mean((2, 4)).flatten(0, 2)

    def _square_of(self, cell: Tensor) -> Tensor:
        """Return the index of the square that each flattened cell lies in."""
        row, column = cell // self._layout.columns, cell % self._layout.columns  # rows over all frames and inputs
        return row // 2 * (self._layout.columns // 2) + column // 2


class _Split(nn.Module):
    """Splits a cell in halves along both sides: (n, 4 * width) -> (4 * n, width), the parts of a cell in a row."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x) * 4, -1)


def build_decoder(kind: DecoderKind, view: Encoder, width: int, target_width: int) -> LightDecoder | LocalDecoder:
    """Build a decoder. Raises ValueError where it does not fit the encoder, or the width is not possible."""
    if width % HEAD:
        raise ValueError(f"model.decoder_width={width} is not a multiple of {HEAD}, the width of an attention head")
    return (LightDecoder if kind == "light" else LocalDecoder)(view, width, target_width)


def spread_taps(depth: int) -> tuple[int, ...]:
    """Return four of `depth` blocks, from 0: the published 2nd, 4th, 3rd from last, and last, or an even spread.

    Raises:
        ValueError: there are fewer than four.
    """
    if depth < len(SCALES):
        raise ValueError(f"model.decoder=local decodes four blocks, and the encoder has {depth}: choose a deeper one")
    if depth >= 8:
        return 1, 3, depth - 3, depth - 1
    return tuple(depth * tap // len(SCALES) - 1 for tap in range(1, len(SCALES) + 1))


def visible_cells(hidden: Tensor, masked: int) -> Tensor:
    """Return the indices of the cells that are not hidden, int64 (B, cells - masked), ascending.

    Args:
        hidden: bool (B, cells).
        masked: the number of hidden cells in each sample.
    """
    return hidden.byte().argsort(dim=1, stable=True)[:, : hidden.shape[1] - masked]


def _refine(width: int, cells: int, numbers: int) -> nn.Sequential:
    """Return layers that map tokens, (n, width), to this many numbers for each of their 1, 4 or 16 cells."""
    layers: list[nn.Module] = []
    while cells > 1:
        if layers:
            layers += [nn.LayerNorm(width), nn.GELU()]
        layers += [nn.Linear(width, 2 * width), _Split()]
        width, cells = width // 2, cells // 4
    return nn.Sequential(*layers, nn.Linear(width, numbers))


def _row_major(cells: Tensor, patches: int) -> Tensor:
    """Reorder cells from `_Split`'s order, (patches * cells, numbers), to (patches, numbers * cells) row-major."""
    numbers = cells.shape[1]
    if len(cells) == 16 * patches:
        return cells.view(patches, 2, 2, 2, 2, numbers).permute(0, 5, 1, 3, 2, 4).reshape(patches, -1)
    return cells.view(patches, -1, numbers).transpose(1, 2).reshape(patches, -1)
