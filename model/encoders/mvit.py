"""torchvision's MViT in the geometry of MaskFeat: MViTv2 with a class token, for clips and for single frames.

Algorithm: Li et al., "MViTv2: Improved Multiscale Vision Transformers for Classification and Detection", CVPR 2022, as
the published code of MaskFeat configures it (github.com/facebookresearch/SlowFast): the width doubles in the MLP
before a stage, residual pooling skips the class token, and pre-training does not pool in the last stage.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from torchvision.models.video.mvit import MSBlockConfig, MViT

from model.size import ImageSize, Sides

KERNEL = [3, 3, 3]  # kernel of all poolings within attention
STRIDE = (2, 4, 4)  # of the patch embedding: frames, rows and columns


@dataclass(frozen=True)
class Options:
    """The sizes of an MViTv2.

    Attributes:
        embed_dim: width of the first block.
        depth: number of blocks.
        num_heads: attention heads of the first block.
        stages: blocks that begin a stage, counted from 0; there width and heads double.
        q_stride_blocks: blocks that halve rows and columns; None: all `stages` for a classifier, else all but the last.
        kv_stride: pooling stride of keys and values in rows and columns; halves with the queries, down to 1.
        drop_path_rate: stochastic depth, growing linearly from 0 to this rate in the last block.
        drop_rate: dropout before a classifier's head.
    """

    embed_dim: int = 96
    depth: int = 16
    num_heads: int = 1
    stages: list[int] = field(default_factory=lambda: [1, 3, 14])
    q_stride_blocks: list[int] | None = None
    kv_stride: int = 8
    drop_path_rate: float = 0.0
    drop_rate: float = 0.0

    def poolings(self, classes: int) -> list[int]:
        """Return the blocks that halve rows and columns in a network of this many classes, 0 in pre-training."""
        if self.q_stride_blocks is not None:
            return self.q_stride_blocks
        return self.stages if classes else self.stages[:-1]


SIZES = {
    "mvit_v2_s": Options(),
    "mvit_v2_l": Options(embed_dim=144, depth=48, num_heads=2, stages=[2, 8, 44]),
    "mvit_v2": Options(),  # any size, by options
}


def build_mvit(name: str, image_size: Sides, frames: int, classes: int = 0, /, **options: Any) -> MViT:
    """Build an MViTv2 of torchvision's class.

    Without classes, the head is an `nn.Identity` and the final LayerNorm is before the pooling, as MaskFeat trains it;
    with classes, it is after the pooling. Besides parameters, the network has `frames` and `grad_checkpointing`.

    Args:
        name, image_size, frames, classes, options: see `mvit_settings`.

    Raises:
        ValueError: see `mvit_settings`.
    """
    network = MViT(**mvit_settings(name, image_size, frames, classes, **options))
    if not classes:
        network.head = nn.Identity()
    network.frames, network.grad_checkpointing = frames, False
    return network


def mvit_settings(name: str, image_size: Sides, frames: int, classes: int = 0, /, **options: Any) -> dict[str, Any]:
    """Return the arguments of torchvision's `MViT`.

    Args:
        name: of `SIZES`.
        image_size: the side of square inputs, or height and width: multiples of 4 pixels.
        frames: frames per clip, an even number; 1: the inputs are single frames.
        classes: outputs of the head; 0: the head has one output and is to be replaced.
        options: those of `Options` that differ from the size's.

    Raises:
        ValueError: an option is unknown, or options, image size and frames do not fit each other.
    """
    unknown = [option for option in options if option not in Options.__annotations__]
    if unknown:
        raise ValueError(f"{name} has no option {unknown[0]}: leave it out")
    made = replace(SIZES[name], **options)
    size = ImageSize.of(image_size)
    _check(made, size, frames, classes)
    return {
        "spatial_size": tuple(size),
        "temporal_size": max(frames, STRIDE[0]),  # torchvision halves it; a single frame also gives one frame of tokens
        "block_setting": list(_blocks(made, classes)),
        "residual_pool": True,
        "residual_with_cls_embed": False,
        "rel_pos_embed": True,
        "proj_after_attn": False,
        "dropout": made.drop_rate,
        "stochastic_depth_prob": made.drop_path_rate,
        "num_classes": max(classes, 1),
    }


def _check(options: Options, size: ImageSize, frames: int, classes: int) -> None:
    """Raise ValueError for options that do not fit each other."""
    if options.depth < 2:
        raise ValueError(f"depth={options.depth} must be at least 2")
    for key, blocks in (("stages", options.stages), ("q_stride_blocks", options.poolings(classes))):
        first = 1 if key == "stages" else 0
        if blocks != sorted(set(blocks)) or (blocks and not first <= blocks[0] <= blocks[-1] < options.depth):
            raise ValueError(f"{key}={blocks} must be ascending block numbers from {first} to {options.depth - 1}")
    if options.embed_dim % options.num_heads:
        raise ValueError(f"embed_dim={options.embed_dim} is not divisible by num_heads={options.num_heads}")
    if size.height % STRIDE[1] or size.width % STRIDE[2]:
        raise ValueError(f"an image of {size} pixels is not a multiple of {STRIDE[1]}-pixel patches")
    if frames != 1 and frames % STRIDE[0]:
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
            kernel_q=KERNEL,
            kernel_kv=KERNEL,
            stride_q=[1, q_stride, q_stride],
            stride_kv=[1, kv_stride, kv_stride],
        )
        width = wider
