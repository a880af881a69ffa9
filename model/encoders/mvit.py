"""torchvision's MViT in the geometry of MaskFeat: MViTv2 with a class token, for clips and for single frames.

Algorithm: Li et al., "MViTv2: Improved Multiscale Vision Transformers for Classification and Detection", CVPR 2022, as
the published code of MaskFeat sets it up (github.com/facebookresearch/SlowFast): the width doubles in the MLP before a
stage, residual pooling leaves out the class token, and pre-training does not pool in the last stage.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from timm.models import checkpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.video.mvit import MSBlockConfig, MViT

from model.encoders.encoder import Pool, PositionInit, draw, draw_video_biases, mask_layout
from model.layout import Layout

_KERNEL = [3, 3, 3]  # of all poolings within attention
_STRIDE = (2, 4, 4)  # of the patch embedding: frames, rows and columns of pixels


@dataclass(frozen=True)
class Options:
    """What a MViTv2 is made of.

    Attributes:
        embed_dim: width of the first block.
        depth: blocks.
        num_heads: of the first block.
        stages: blocks that begin a stage, counted from 0: there width and heads are doubled.
        q_stride_blocks: blocks that halve rows and columns; None: all `stages` of a classifier, else all but the last.
        kv_stride: by which keys and values are pooled in rows and columns; halved wherever queries are, down to 1.
        drop_path_rate: stochastic depth of the last block, to which it grows linearly from 0.
        drop_rate: dropout of the feature that a classifier's head takes.
    """

    embed_dim: int = 96
    depth: int = 16
    num_heads: int = 1
    stages: Sequence[int] = (1, 3, 14)
    q_stride_blocks: Sequence[int] | None = None
    kv_stride: int = 8
    drop_path_rate: float = 0.0
    drop_rate: float = 0.0

    def poolings(self, classes: int) -> tuple[int, ...]:
        """Return the blocks that halve rows and columns in a network with so many classes, 0 in pre-training."""
        if self.q_stride_blocks is not None:
            return tuple(self.q_stride_blocks)
        return tuple(self.stages if classes else self.stages[:-1])


SIZES = {
    "mvit_v2_s": Options(),
    "mvit_v2_l": Options(embed_dim=144, depth=48, num_heads=2, stages=(2, 8, 44)),
    "mvit_v2": Options(),  # of any size, by options
}


def build_mvit(name: str, image_size: int, frames: int, classes: int = 0, /, **options: Any) -> MViT:
    """Build a MViTv2 of torchvision's class.

    Without classes its head is an `nn.Identity`, and its final LayerNorm sits before the pooling, where MaskFeat trains
    it, else behind it. Beside the parameters the network has `frames` and `grad_checkpointing`.

    Args:
        name: of `SIZES`.
        image_size: side in pixels, a multiple of 4.
        frames: of a clip, an even number; 1: the network takes single frames.
        classes: outputs of its head; 0: it has no head.
        options: those of `Options` that differ from the size's.

    Raises:
        ValueError: an option is unknown, or options, image size and frames do not fit each other.
    """
    unknown = [option for option in options if option not in Options.__annotations__]
    if unknown:
        raise ValueError(f"{name} has no option {unknown[0]}: leave it out")
    made = replace(SIZES[name], **options)
    _check(made, image_size, frames, classes)
    rows = image_size // _STRIDE[1]
    network = MViT(
        spatial_size=(image_size, image_size),
        temporal_size=max(frames, _STRIDE[0]),  # torchvision halves it: a single frame, too, is one frame of tokens
        block_setting=list(_blocks(made, classes)),
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=False,
        dropout=made.drop_rate,
        stochastic_depth_prob=made.drop_path_rate,
        num_classes=max(classes, 1),
    )
    assert network.pos_encoding.spatial_size == (rows, rows)
    if not classes:
        network.head = nn.Identity()
    network.frames, network.grad_checkpointing = frames, False
    return network


def _check(options: Options, image_size: int, frames: int, classes: int) -> None:
    """Raise ValueError for options that do not fit each other."""
    if options.depth < 2:
        raise ValueError(f"depth={options.depth} has to be 2 at least")
    for key, blocks in (("stages", options.stages), ("q_stride_blocks", options.poolings(classes))):
        first = 1 if key == "stages" else 0
        if list(blocks) != sorted(set(blocks)) or (blocks and not first <= blocks[0] <= blocks[-1] < options.depth):
            raise ValueError(
                f"{key}={list(blocks)} has to be ascending numbers of blocks from {first} to {options.depth - 1}"
            )
    if options.embed_dim % options.num_heads:
        raise ValueError(f"embed_dim={options.embed_dim} is not divisible by num_heads={options.num_heads}")
    if image_size % _STRIDE[1]:
        raise ValueError(f"an image of {image_size} pixels is not a multiple of {_STRIDE[1]}-pixel patches")
    if frames != 1 and frames % _STRIDE[0]:
        raise ValueError(f"a clip has an even number of frames, or 1, but not {frames}")


def _blocks(options: Options, classes: int) -> Iterator[MSBlockConfig]:
    """Yield the settings of every block."""
    width, heads, kv_stride = options.embed_dim, options.num_heads, options.kv_stride
    poolings = options.poolings(classes)
    for block in range(options.depth):
        heads *= 2 if block in options.stages else 1
        q_stride = 2 if block in poolings else 1
        kv_stride = max(kv_stride // q_stride, 1)
        wider = width * (2 if block + 1 in options.stages else 1)
        yield MSBlockConfig(
            num_heads=heads,
            input_channels=width,
            output_channels=wider,
            kernel_q=_KERNEL,
            kernel_kv=_KERNEL,
            stride_q=[1, q_stride, q_stride],
            stride_kv=[1, kv_stride, kv_stride],
        )
        width = wider


class MViTEncoder:
    """The `Encoder` of a MViT, with three grids.

    For MViTv2-S on 16 frames of 224 pixels these are tokens of 8x56x56, predictions of 8x14x14 (of a classifier 8x7x7)
    and masks of 8x7x7. The kernel of the patch embedding overlaps its neighbours: next to a mask, a visible token sees
    a few hidden pixels, as in the published code.

    Args:
        network: as `build_mvit` built it.
    """

    decayed_vectors = ("pos_encoding.class_token",)

    def __init__(self, network: MViT) -> None:
        self.network: Any = network
        rows, columns = network.pos_encoding.spatial_size
        self.input_shape: tuple[int, ...] = (3, self.network.frames, rows * _STRIDE[1], columns * _STRIDE[2])
        self.token_layout = Layout(network.pos_encoding.temporal_size, rows, columns)
        self._grids = [self.token_layout]  # before each block, and behind the last
        for block in self.network.blocks:
            self._grids.append(_pooled(self._grids[-1], block.attn.pool_q.pool.stride))
        self.prediction_layout = self._grids[-1]
        pooling = math.prod(block.attn.pool_q.pool.stride[1] for block in self.network.blocks)
        self.prediction_patch = (_STRIDE[0], _STRIDE[1] * pooling, _STRIDE[2] * pooling)
        self.mask_layout = mask_layout(self.prediction_layout, self.input_shape)
        self.embedding_width: int = network.conv_proj.out_channels
        self.width: int = self.network.norm.normalized_shape[0]
        self.prefix = 1
        self.depth = len(network.blocks)
        self.classes: int = 0 if isinstance(network.head, nn.Identity) else self.network.head[-1].out_features
        self.classifier_parts = ("norm.", "head.") if self.classes else ()

    @property
    def head(self) -> nn.Module:
        """See `Encoder`."""
        return self.network.head[-1] if self.classes else self.network.head

    def embed(self, inputs: Tensor) -> Tensor:
        """See `Encoder`; inputs are (B, 3, frames, H, W)."""
        tokens: Tensor = self.network.conv_proj(inputs).flatten(2).transpose(1, 2)
        return tokens

    def encode(self, tokens: Tensor) -> Tensor:
        """See `Encoder`."""
        encoded: Tensor = self.network.norm(self._through_blocks(tokens))[:, 1:]
        return encoded

    def pooled(self, inputs: Tensor) -> Tensor:
        """See `Encoder`."""
        tokens = self.embed(inputs)
        if not self.classes:
            return self.encode(tokens).mean(1)
        feature: Tensor = self.network.norm(self._through_blocks(tokens)[:, 1:].mean(1))
        return feature

    def pooled_blocks(self, inputs: Tensor, blocks: Sequence[int], pool: Pool) -> list[Tensor]:
        """See `Encoder`. Blocks that are not as wide as the last are normalised without a scale and shift."""
        norm, x, features = self.network.norm, self.network.pos_encoding(self.embed(inputs)), []
        for index in range(max(blocks) + 1):
            x = self._block(index, x)
            if index in blocks:
                width = x.shape[-1]
                normed = norm(x) if width == self.width else F.layer_norm(x, (width,), eps=norm.eps)
                features.append(normed[:, 1:].float().mean(1) if pool == "mean" else normed[:, 0].float())
        return features

    def initialise(self, position_init: PositionInit) -> None:
        """See `Encoder`. Biases start as in the published code of videos."""
        if position_init != "random":
            raise ValueError(f"position_init={position_init} needs absolute positions: set it to random for a MViT")
        draw(self.network.pos_encoding.class_token)
        for block in self.network.blocks:
            for table in (block.attn.rel_pos_h, block.attn.rel_pos_w, block.attn.rel_pos_t):
                draw(table)
        draw_video_biases(self.network)
        if not self.classes:  # the published code counts this norm among the prediction head
            nn.init.zeros_(self.network.norm.bias)

    def checkpoint_blocks(self, enabled: bool) -> None:
        """See `Encoder`."""
        self.network.grad_checkpointing = enabled

    def layer_of(self, name: str) -> int:
        """See `Encoder`."""
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return 0 if name.startswith(("conv_proj.", "pos_encoding.")) else self.depth + 1

    def macs(self) -> int:
        """See `Encoder`; with the convolutions, and the products of queries and relative positions."""
        total: int = self.token_layout.cells * self.network.conv_proj.weight.numel()
        for block, before, after in zip(self.network.blocks, self._grids, self._grids[1:], strict=False):
            total += _block_macs(block, before, after)
        return total

    def _through_blocks(self, tokens: Tensor) -> Tensor:
        """(B, token cells, embedding width) -> (B, 1 + prediction cells, width)."""
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
    """Return the grid behind a pooling, which rounds up."""
    frames, rows, columns = (
        -(-side // step) for side, step in zip((grid.frames, grid.rows, grid.columns), stride, strict=True)
    )
    return Layout(frames, rows, columns)


def _block_macs(block: Any, before: Layout, after: Layout) -> int:
    """Count the multiply-adds of one input in a block that takes one grid of tokens to another."""
    attention, keys = block.attn, _pooled(before, block.attn.pool_k.pool.stride)
    into, queries, seen = (1 + grid.cells for grid in (before, after, keys))
    width: int = attention.output_dim
    total: int = into * attention.qkv.weight.numel()
    total += math.prod(_KERNEL) * width * (after.cells + 2 * keys.cells)  # poolings of queries, keys and values
    total += 2 * queries * seen * width  # queries by keys, weights by values
    total += after.cells * width * (keys.frames + keys.rows + keys.columns)
    linear = [attention.project, block.mlp, *([] if block.project is None else [block.project])]
    return total + queries * sum(
        m.weight.numel() for part in linear for m in part.modules() if isinstance(m, nn.Linear)
    )
