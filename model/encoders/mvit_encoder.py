"""The adapter of torchvision's MViT."""

import math
from collections.abc import Sequence
from typing import Any

from timm.models import checkpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.video import MViT

from model.encoders.attention import softmaxes
from model.encoders.encoder import Encoder, Pool, PositionInit, draw, draw_video_biases, mask_layout
from model.encoders.mvit import KERNEL, STRIDE
from model.layout import Layout


class MViTEncoder:
    """The `Encoder` of an MViT, with three grids.

    For MViTv2-S on 16 frames of 224 pixels, these are tokens of 8x56x56, predictions of 8x14x14 (8x7x7 for a
    classifier) and masks of 8x7x7. The kernels of the patch embedding overlap: next to a mask, a visible token sees
    a few hidden pixels, as in the published code.

    A single frame has the relative positions in time of a frame to itself, to which torchvision, like the published
    code, resamples those of a clip: an odd number of them to the middle one.

    Args:
        network: as `build_mvit` built it.
        frames: of the inputs, 1 or those of the network; None: the latter.
    """

    decayed_vectors: tuple[str, ...] = ("pos_encoding.class_token",)

    def __init__(self, network: MViT, frames: int | None = None) -> None:
        self.network: Any = network
        frames = frames or self.network.frames
        rows, columns = network.pos_encoding.spatial_size
        self.input_shape: tuple[int, ...] = (3, frames, rows * STRIDE[1], columns * STRIDE[2])
        self.token_layout = Layout(max(frames // STRIDE[0], 1), rows, columns)
        self.single_frames: Encoder | None = MViTEncoder(network, 1) if frames > 1 else None
        self._grids = [self.token_layout]  # before each block, and after the last
        for block in self.network.blocks:
            self._grids.append(_pooled(self._grids[-1], block.attn.pool_q.pool.stride))
        self.prediction_layout = self._grids[-1]
        pooling = math.prod(block.attn.pool_q.pool.stride[1] for block in self.network.blocks)
        self.prediction_patch = (STRIDE[0], STRIDE[1] * pooling, STRIDE[2] * pooling)
        self.mask_layout = mask_layout(self.prediction_layout, self.input_shape)
        self.embedding_width: int = network.conv_proj.out_channels
        self.width: int = self.network.norm.normalized_shape[0]
        self.block_widths = tuple(block.mlp[3].out_features for block in self.network.blocks)
        self.key_layouts = tuple(
            _pooled(grid, block.attn.pool_k.pool.stride)
            for block, grid in zip(self.network.blocks, self._grids, strict=False)
        )
        self.prefix = 1
        self.depth = len(network.blocks)
        self.classes: int = 0 if isinstance(network.head, nn.Identity) else self.network.head[-1].out_features
        self.classifier_parts: tuple[str, ...] = ("norm.", "head.") if self.classes else ()

    @property
    def head(self) -> nn.Module:
        """See `Encoder`."""
        head: nn.Module = self.network.head[-1] if self.classes else self.network.head
        return head

    def embed(self, inputs: Tensor) -> Tensor:
        """See `Encoder`; inputs are (B, 3, frames, H, W)."""
        tokens: Tensor = self.network.conv_proj(inputs).flatten(2).transpose(1, 2)
        return tokens

    def encode(self, tokens: Tensor) -> Tensor:
        """See `Encoder`."""
        encoded: Tensor = self.network.norm(self._through_blocks(tokens))[:, 1:]
        return encoded

    def encode_visible(self, inputs: Tensor, visible: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """See `Encoder`. Raises ValueError: an MViT pools neighbouring tokens, so it needs all of them."""
        raise ValueError("an MViT cannot encode visible patches only: leave out model.decoder, or choose a plain ViT")

    def pooled(self, inputs: Tensor) -> Tensor:
        """See `Encoder`."""
        tokens = self.embed(inputs)
        if not self.classes:
            return self.encode(tokens).mean(1)
        feature: Tensor = self.network.norm(self._through_blocks(tokens)[:, 1:].mean(1))
        return feature

    def pooled_blocks(self, inputs: Tensor, blocks: Sequence[int], pool: Pool) -> list[Tensor]:
        """See `Encoder`. Blocks of another width than the last are normalised without scale and shift."""
        norm, x, features = self.network.norm, self.network.pos_encoding(self.embed(inputs)), []
        for index in range(max(blocks) + 1):
            x = self._block(index, x)
            if index in blocks:
                width = x.shape[-1]
                normed = norm(x) if width == self.width else F.layer_norm(x, (width,), eps=norm.eps)
                features.append(normed[:, 1:].float().mean(1) if pool == "mean" else normed[:, 0].float())
        return features

    def attention(self, inputs: Tensor) -> list[Tensor]:
        """See `Encoder`."""
        return softmaxes(lambda: self.encode(self.embed(inputs)))

    def initialise(self, position_init: PositionInit) -> None:
        """See `Encoder`. Biases start as in the published video code."""
        if position_init != "random":
            raise ValueError(f"position_init={position_init} needs absolute positions: set it to random for an MViT")
        draw(self.network.pos_encoding.class_token)
        for block in self.network.blocks:
            for table in (block.attn.rel_pos_h, block.attn.rel_pos_w, block.attn.rel_pos_t):
                draw(table)
        draw_video_biases(self.network)
        if not self.classes:  # in the published code this norm belongs to the prediction head
            nn.init.zeros_(self.network.norm.bias)

    def checkpoint_blocks(self, enabled: bool) -> None:
        """See `Encoder`."""
        self.network.grad_checkpointing = enabled

    def layer_of(self, name: str) -> int:
        """See `Encoder`."""
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return 0 if name.startswith(("conv_proj.", "pos_encoding.")) else self.depth + 1

    def macs(self, visible: int | None = None) -> int:
        """See `Encoder`; includes the convolutions, and the products of queries and relative positions."""
        total: int = self.token_layout.cells * self.network.conv_proj.weight.numel()
        for block, before, after in zip(self.network.blocks, self._grids, self._grids[1:], strict=False):
            total += _block_macs(block, before, after)
        return total

    def _through_blocks(self, tokens: Tensor) -> Tensor:
        """Run the blocks: (B, token cells, embedding width) -> (B, 1 + prediction cells, width)."""
        x: Tensor = self.network.pos_encoding(tokens)  # with the class token
        for index in range(self.depth):
            x = self._block(index, x)
        return x

    def _block(self, index: int, x: Tensor) -> Tensor:
        block, grid = self.network.blocks[index], self._grids[index]
        thw = (grid.frames, grid.rows, grid.columns)
        x, _ = checkpoint(block, x, thw) if self.network.grad_checkpointing else block(x, thw)
        return x


def _pooled(grid: Layout, stride: Sequence[int]) -> Layout:
    """Return the grid after a pooling, which rounds up."""
    frames, rows, columns = (
        -(-side // step) for side, step in zip((grid.frames, grid.rows, grid.columns), stride, strict=True)
    )
    return Layout(frames, rows, columns)


def _block_macs(block: Any, before: Layout, after: Layout) -> int:
    """Count the multiply-adds of one input in a block that maps one grid of tokens to another."""
    attention, keys = block.attn, _pooled(before, block.attn.pool_k.pool.stride)
    into, queries, seen = (1 + grid.cells for grid in (before, after, keys))
    width: int = attention.output_dim
    total: int = into * attention.qkv.weight.numel()
    total += math.prod(KERNEL) * width * (after.cells + 2 * keys.cells)  # poolings of queries, keys and values
    total += 2 * queries * seen * width  # queries by keys, weights by values
    total += after.cells * width * (keys.frames + keys.rows + keys.columns)
    linear = [attention.project, block.mlp, *([] if block.project is None else [block.project])]
    return total + queries * sum(
        m.weight.numel() for part in linear for m in part.modules() if isinstance(m, nn.Linear)
    )
