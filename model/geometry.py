"""Infer the architecture of other projects' weights from names and shapes."""

import re
from math import isqrt
from typing import Any, NamedTuple

from model.encoders.mvit import SIZES, STRIDE, Options
from model.encoders.tubelet import TUBELET
from model.size import Sides
from model.weights import OURS, TIMM, Weights, WeightsError

HEAD_WIDTH = 64  # of an attention head in all published plain transformers of MaskFeat; shapes do not show it

_PLAIN = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large"}  # timm's, by width and depth


class Architecture(NamedTuple):
    """The arguments of `build_network`, except the classes.

    Attributes:
        name, image_size, frames, options: see `build_network`.
    """

    name: str
    image_size: Sides
    frames: int | None
    options: dict[str, Any]


def geometry(weights: Weights) -> Architecture:
    """Infer the architecture of a SlowFast or mmpretrain checkpoint.

    Raises:
        WeightsError: a required key is missing, or of an impossible shape.
    """
    if weights.layout in (TIMM, OURS):
        raise WeightsError(f"{weights.file} has names of {weights.layout.code}: it needs no conversion")
    if weights.has("encoder.blocks.0.attn.rel_pos_t"):
        return _mvit(weights)
    if weights.has("encoder.pos_embed_spatial"):
        return _tubelet_vit(weights)
    return _vit(weights)


def _vit(weights: Weights) -> Architecture:
    patch = weights.get("encoder.patch_embed.proj.weight", 4).shape[-1]
    patches = weights.get("encoder.pos_embed", 3).shape[1] - 1
    return _plain(weights, patch, patches, None)


def _tubelet_vit(weights: Weights) -> Architecture:
    shape = weights.get("encoder.patch_embed.proj.weight", 5).shape
    if shape[2] != TUBELET:
        raise WeightsError(f"{weights.file}: its tubelets are {shape[2]} frames long instead of {TUBELET}")
    frames = weights.get("encoder.pos_embed_temporal", 3).shape[1] * TUBELET
    return _plain(weights, shape[-1], weights.get("encoder.pos_embed_spatial", 3).shape[1], frames)


def _plain(weights: Weights, patch: int, patches: int, frames: int | None) -> Architecture:
    """Infer the architecture of a plain transformer with this many patches in a frame."""
    width, depth = weights.tensors[weights.layout.key("encoder.patch_embed.proj.weight")].shape[0], _depth(weights)
    hidden = len(weights.get("encoder.blocks.0.mlp.fc1.weight", 2))
    if width % HEAD_WIDTH or isqrt(patches) ** 2 != patches:
        raise WeightsError(
            f"{weights.file}: {patches} patches do not form a square, or a width of {width} is not a multiple of "
            f"{HEAD_WIDTH}, the width of an attention head"
        )
    image_size = isqrt(patches) * patch
    if (width, depth) in _PLAIN and (patch, hidden) == (16, 4 * width):
        return Architecture(f"vit_{_PLAIN[width, depth]}_patch16_224", image_size, frames, {})
    options: dict[str, Any] = {"embed_dim": width, "depth": depth, "num_heads": width // HEAD_WIDTH}
    options |= {"mlp_ratio": hidden / width, "patch_size": patch}
    return Architecture("vit_base_patch16_224", image_size, frames, options)


def _mvit(weights: Weights) -> Architecture:
    """Infer the architecture of an MViTv2. Assumes that keys are first pooled by 8 x 8, which shapes do not show."""
    depth, block = _depth(weights), "encoder.blocks.{}.attn.{}"
    tables = [len(weights.get(block.format(index, "rel_pos_h"), 2)) for index in range(depth)]
    head_width = weights.get(block.format(0, "rel_pos_h"), 2).shape[1]
    heads = [len(weights.get(block.format(index, "qkv.weight"), 2)) // (3 * head_width) for index in range(depth)]
    options: dict[str, Any] = {
        "embed_dim": len(weights.get("encoder.conv_proj.weight", 5)),
        "depth": depth,
        "num_heads": heads[0],
        "stages": [index for index in range(1, depth) if heads[index] != heads[index - 1]],
    }
    frames = (len(weights.get(block.format(0, "rel_pos_t"), 2)) + 1) // 2 * STRIDE[0]
    image_size = (tables[0] + 1) // 2 * STRIDE[1]
    published = [name for name, size in SIZES.items() if all(getattr(size, key) == options[key] for key in options)]
    poolings = _query_strides(weights, tables)
    if weights.fine_tuned and depth - 1 in options["stages"] and depth - 1 not in poolings:
        poolings.append(depth - 1)  # not visible in shapes, but all classifiers pool where a stage begins
    as_usual = poolings == options["stages"][:-1] and not weights.fine_tuned
    said = {} if as_usual else {"q_stride_blocks": poolings}
    if published:
        return Architecture(published[0], image_size, frames, said)
    return Architecture("mvit_v2", image_size, frames, options | said)


def _query_strides(weights: Weights, tables: list[int]) -> list[int]:
    """Return the blocks that halve rows and columns.

    A table of relative positions has 2 n - 1 rows, where n is the longer side of queries and keys. Where keys are not
    pooled, a block that halves the queries has as long a table as one that does not; the next block's table decides.

    Raises:
        WeightsError: the tables do not belong to such a network.
    """
    sides = [(rows + 1) // 2 for rows in tables]
    side, kv_stride, found = sides[0], Options.kv_stride, []
    for index, seen in enumerate(sides):
        halved = max(side // 2, side // max(kv_stride // 2, 1))
        after = sides[index + 1] if index + 1 < len(sides) else side
        if seen != side or (halved == side and after != side):
            if seen != halved:
                raise WeightsError(
                    f"{weights.file}: relative positions of {tables[index]} rows in block {index} do not fit those "
                    "before it, if queries are pooled by 2 and keys of the first block by 8"
                )
            found.append(index)
            side, kv_stride = side // 2, max(kv_stride // 2, 1)
    return found


def _depth(weights: Weights) -> int:
    block = re.compile(re.escape(weights.layout.key("encoder.blocks.")) + r"(\d+)\.")
    return len({found[1] for key in weights.tensors if (found := block.match(key))})
