"""The interface between MaskFeat and a vision transformer, implemented by one adapter per family."""

from collections.abc import Sequence
from math import sqrt
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from model.layout import Layout

PositionInit = Literal["random", "sincos", "fixed"]  # fixed: the table of sincos, not trained
Pool = Literal["mean", "class"]  # the mean of the patch tokens, or the class token

_VIDEO_BIAS = 0.02  # initial value of biases
_MASK_CELL = 32  # side of a cell of a clip's mask, in pixels


class Encoder(Protocol):
    """A view of a network, without weights and state of its own.

    The three grids are equal for a plain vision transformer on images. A transformer that pools between its blocks may
    embed finer tokens than its predictions, and have coarser masks.

    Attributes:
        network: the module whose weights are trained, saved and exported.
        input_shape: (3, height, width) of an image, (3, frames, height, width) of a clip.
        mask_layout: grid of the mask; it divides the other two.
        token_layout: grid of the embedded patches.
        prediction_layout: grid of the encoded patches.
        prediction_patch: frames, rows and columns of pixels of one prediction.
        embedding_width: width of an embedded patch.
        width: width of an encoded patch.
        block_widths: width of a token after each block.
        key_layouts: grid of the keys of each block's attention, besides the `prefix`.
        prefix: number of tokens before the patches, such as the class token.
        depth: number of blocks.
        classes: outputs of the network's head; 0: the network has none.
        classifier_parts: name prefixes of the parts that only a classifier has, or that it trains unlike MaskFeat.
        single_frames: the view of the same network on clips of one frame, if it takes these beside longer clips.
        decayed_vectors: names of the one-dimensional parameters with weight decay: tokens, not biases.
    """

    network: Any
    input_shape: tuple[int, ...]
    mask_layout: Layout
    token_layout: Layout
    prediction_layout: Layout
    prediction_patch: tuple[int, int, int]
    embedding_width: int
    width: int
    block_widths: tuple[int, ...]
    key_layouts: tuple[Layout, ...]
    prefix: int
    depth: int
    classes: int
    classifier_parts: tuple[str, ...]
    decayed_vectors: tuple[str, ...]
    single_frames: "Encoder | None"

    @property
    def head(self) -> nn.Module:
        """The classifier's linear layer; without classes an `nn.Identity`."""
        ...

    def embed(self, inputs: Tensor) -> Tensor:
        """Embed the patches of normalised inputs: (B, token cells, embedding width)."""
        ...

    def encode(self, tokens: Tensor) -> Tensor:
        """Encode embedded patches, some of them replaced by a mask token: (B, prediction cells, width)."""
        ...

    def encode_visible(self, inputs: Tensor, visible: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """Embed and encode some of the patches only.

        Args:
            inputs: normalised, (B, ...).
            visible: int64 (B * r, kept), the token cells of each view; the r views of an input are consecutive.
            taps: blocks, counted from 0 and ascending, whose outputs are returned.

        Returns:
            (B * r, kept, width) each; the last block's after the final norm.

        Raises:
            ValueError: the network needs all of its tokens.
        """
        ...

    def pooled(self, inputs: Tensor) -> Tensor:
        """Return the feature of each normalised input, (B, width), the input of a classifier's head."""
        ...

    def pooled_blocks(self, inputs: Tensor, blocks: Sequence[int], pool: Pool) -> list[Tensor]:
        """Return the pooled output of some blocks, counted from 0, after the final norm: (B, its width) each."""
        ...

    def attention(self, inputs: Tensor) -> list[Tensor]:
        """Return each block's attention on normalised inputs: for each query the shares of the keys, which sum to 1.

        The tensors are float32 (B, heads, prefix + queries, prefix + keys), and take much memory.
        """
        ...

    def initialise(self, position_init: PositionInit) -> None:
        """Draw the learned tokens and positions anew. Raises ValueError where there are none."""
        ...

    def checkpoint_blocks(self, enabled: bool) -> None:
        """Enable activation checkpointing, which computes each block twice instead of keeping its activations."""
        ...

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter: 0 before the blocks, i + 1 in block i, depth + 1 after them."""
        ...

    def macs(self, visible: int | None = None) -> int:
        """Count the multiply-adds of the matrix products of one input's forward pass.

        Args:
            visible: token cells that are encoded; None: all of them.
        """
        ...


def view_of(view: Encoder, inputs: Tensor) -> Encoder:
    """Return the view of a network that these inputs fit: of clips of one frame the one of single frames."""
    if view.single_frames is not None and inputs.shape[2] == 1:
        return view.single_frames
    return view


def draw(parameter: nn.Parameter | None) -> None:
    """Draw a token or positions from the published code's truncated normal with deviation 0.02."""
    if parameter is not None:
        nn.init.trunc_normal_(parameter, std=0.02)


def draw_video_biases(network: nn.Module) -> None:
    """Initialise biases as the published video code does: to 0.02, and in convolutions to torch's default."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
            nn.init.constant_(module.bias, _VIDEO_BIAS)
        elif isinstance(module, nn.Conv3d) and module.bias is not None:
            bound = 1 / sqrt(module.weight[0].numel())
            nn.init.uniform_(module.bias, -bound, bound)


def gathered(patches: Tensor, visible: Tensor) -> Tensor:
    """Return the visible patches of each view: (B, cells, n) and (B * r, kept) -> (B * r, kept, n)."""
    batch, cells, width = patches.shape
    first = torch.arange(batch, device=patches.device)[:, None] * cells
    rows = visible.reshape(batch, -1) + first
    return patches.flatten(0, 1)[rows].view(len(visible), -1, width)


def fix(parameter: nn.Parameter) -> None:
    """Exclude a parameter from training. It keeps its value, and checkpoints omit it."""
    parameter.requires_grad_(False)


def mask_layout(predictions: Layout, input_shape: tuple[int, ...]) -> Layout:
    """Return the mask grid of clips: cells of 32 pixels where predictions divide them, else the predictions' grid."""
    rows, columns = (side // _MASK_CELL for side in input_shape[-2:])
    fits = not any(side % _MASK_CELL for side in input_shape[-2:])
    if fits and not (predictions.rows % rows or predictions.columns % columns):
        return Layout(predictions.frames, rows, columns)
    return predictions
