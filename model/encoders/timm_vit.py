"""The adapter of timm's vision transformers: `VisionTransformer`, and `Beit` with its relative positions."""

import difflib
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import timm
import torch
from timm.models import Beit, Eva, VisionTransformer, checkpoint, is_model_in_modules
from torch import Tensor, nn
from torch.nn import functional as F

from model.encoders.attention import timm_softmaxes
from model.encoders.encoder import Encoder, Pool, PositionInit, draw, fix, gathered
from model.encoders.positions import sincos_positions
from model.layout import Layout
from model.size import Sides

TimmViT: TypeAlias = VisionTransformer | Beit | Eva


def build_encoder(name: str, image_size: Sides, classes: int = 0, /, **options: Any) -> TimmViT:
    """Build a timm vision transformer whose pooled feature is the mean of its patch tokens.

    Without a head, the final LayerNorm is before the pooling, as MaskFeat trains it; with a head, it is after the
    pooling. The class token is kept, as in the published weights, although MaskFeat's loss does not reach its output.

    Args:
        name: any timm model that is a `VisionTransformer`, a `Beit` with its relative positions, or an `Eva` with
            rotary ones.
        image_size: the side of square inputs, or height and width, in pixels.
        classes: outputs of the head; 0: the network does not have a head.
        options: passed to timm, e.g. `embed_dim`, `depth`, `num_heads`, `drop_path_rate`.

    Raises:
        ValueError: the model is unknown, or is not a plain vision transformer.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name[:100], timm.list_models(), n=5)
        raise ValueError(f"timm has no model {name[:100]!r}; near it: {', '.join(near) or 'see timm.list_models()'}")
    of_eva = is_model_in_modules(name, ["eva"])
    norm_behind_pooling = "use_fc_norm" if of_eva or is_model_in_modules(name, ["beit"]) else "fc_norm"
    if of_eva:  # rotary positions are then a table, instead of being computed on the CPU at every step
        options["dynamic_img_size"] = False
    try:
        encoder = timm.create_model(
            name,
            img_size=image_size,
            num_classes=classes,
            global_pool="avg",
            **{norm_behind_pooling: classes > 0},
            **options,
        )
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown and unknown[1] in options:
            raise ValueError(f"{name} has no option {unknown[1]}: leave it out") from error
        encoder = None
    plain = isinstance(encoder, VisionTransformer) and encoder.pos_embed is not None
    if not (plain or isinstance(encoder, Beit | Eva)):
        raise ValueError(f"{name!r} is not a plain vision transformer: choose one like vit_base_patch16_224")
    if 0 in encoder.patch_embed.grid_size:
        raise ValueError(f"a patch of {encoder.patch_embed.patch_size[0]} pixels is larger than an image")
    return encoder


class TimmEncoder:
    """The `Encoder` of a timm vision transformer, whose three grids are that of its patches.

    Args:
        network: a result of `build_encoder` or of timm itself.
    """

    decayed_vectors: tuple[str, ...] = ()
    single_frames: Encoder | None = None
    classifier_parts: tuple[str, ...] = ("fc_norm.", "head.")

    def __init__(self, network: TimmViT) -> None:
        self.network: Any = network
        rows, columns = network.patch_embed.grid_size
        height, width = network.patch_embed.patch_size
        self.input_shape: tuple[int, ...] = (3, rows * height, columns * width)
        self.mask_layout = self.token_layout = self.prediction_layout = Layout(1, rows, columns)
        self.prediction_patch = (1, height, width)
        self.embedding_width: int = network.embed_dim
        self.width: int = network.embed_dim
        self.prefix: int = network.num_prefix_tokens
        self.depth = len(network.blocks)
        self.block_widths, self.key_layouts = (self.width,) * self.depth, (self.token_layout,) * self.depth
        self.classes: int = network.num_classes

    @property
    def head(self) -> nn.Module:
        """See `Encoder`."""
        head: nn.Module = self.network.head
        return head

    def embed(self, inputs: Tensor) -> Tensor:
        """See `Encoder`; inputs are (B, 3, H, W)."""
        tokens: Tensor = self.network.patch_embed(inputs)
        return tokens

    def encode(self, tokens: Tensor) -> Tensor:
        """See `Encoder`. This is timm's `forward_features` after the patch embedding."""
        return self._encode(tokens)[:, self.prefix :]

    def encode_visible(self, inputs: Tensor, visible: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """See `Encoder`. Pixels are gathered, so that hidden patches are not even embedded."""
        if isinstance(self.network, Beit):
            raise ValueError(
                "to encode visible patches only, a network needs absolute or rotary positions: choose a plain ViT"
            )
        return through(self.network, self._embed_visible(inputs, visible), self.prefix, taps)

    def pooled(self, inputs: Tensor) -> Tensor:
        """See `Encoder`."""
        feature: Tensor = self.network.forward_head(self.network.forward_features(inputs), pre_logits=True)
        return feature

    def pooled_blocks(self, inputs: Tensor, blocks: Sequence[int], pool: Pool) -> list[Tensor]:
        """See `Encoder`."""
        of_class = pool == "class"
        if of_class and self.network.cls_token is None:
            raise ValueError("this encoder does not have a class token: use the mean of its patch tokens (--pool mean)")
        outputs = self.network.forward_intermediates(
            inputs,
            indices=list(blocks),
            return_prefix_tokens=of_class,
            norm=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        return [output[1][:, 0].float() if of_class else output.float().mean(1) for output in outputs]

    def attention(self, inputs: Tensor) -> list[Tensor]:
        """See `Encoder`."""
        return timm_softmaxes(self.network.blocks, lambda: self.encode(self.embed(inputs)))

    def initialise(self, position_init: PositionInit) -> None:
        """See `Encoder`."""
        network = self.network
        for parameter in (network.cls_token, getattr(network, "reg_token", None), network.pos_embed):
            draw(parameter)
        if position_init == "random":
            return
        if network.pos_embed is None:
            raise ValueError(
                f"position_init={position_init} needs an encoder with absolute positions: set it to random"
            )
        table = sincos_positions(network.patch_embed.grid_size, network.embed_dim)
        with torch.no_grad():
            if position_init == "fixed":
                nn.init.zeros_(network.pos_embed)
                fix(network.pos_embed)
            network.pos_embed[0, -len(table) :] = table

    def checkpoint_blocks(self, enabled: bool) -> None:
        """See `Encoder`."""
        self.network.set_grad_checkpointing(enabled)

    def layer_of(self, name: str) -> int:
        """See `Encoder`."""
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return self.depth + 1 if name.startswith(("norm.", "fc_norm.", "head.")) else 0

    def macs(self, visible: int | None = None) -> int:
        """See `Encoder`."""
        return transformer_macs(self.network, visible or self.token_layout.cells)

    def _embed_visible(self, inputs: Tensor, visible: Tensor) -> Tensor:
        """Embed the visible patches of each view, with their positions: (B * r, prefix + kept, width)."""
        network, cells = self.network, self.token_layout.cells
        convolution = network.patch_embed.proj
        x = F.linear(gathered(self._pixels(inputs), visible), convolution.weight.flatten(1), convolution.bias)
        x = network.patch_embed.norm(x)
        prefix = [token for token in (network.cls_token, network.reg_token) if token is not None]
        if network.pos_embed is not None:
            positions = network.pos_embed[0]
            x = x + positions[-cells:][visible]
            if prefix and not network.no_embed_class:
                prefix = [torch.cat(prefix, dim=1) + positions[:-cells]]
        x = torch.cat([*(token.expand(len(x), -1, -1) for token in prefix), x], dim=1)
        embedded: Tensor = network.norm_pre(network.pos_drop(x))
        return embedded

    def _pixels(self, inputs: Tensor) -> Tensor:
        """Cut images into patches: (B, 3, H, W) -> (B, cells, 3 * height * width), in the order of the kernel."""
        batch, layout, (_, height, width) = len(inputs), self.token_layout, self.prediction_patch
        patches = inputs.reshape(batch, -1, layout.rows, height, layout.columns, width).permute(0, 2, 4, 1, 3, 5)
        return patches.reshape(batch, layout.cells, -1)

    def _encode(self, x: Tensor) -> Tensor:
        """Run the blocks: (B, patches, width) -> (B, prefix + patches, width)."""
        network = self.network
        if not isinstance(network, Beit):
            x = network.norm_pre(network.patch_drop(network._pos_embed(x)))
            encoded: Tensor = network.norm(self._through_blocks(x))
            return encoded
        x = torch.cat([network.cls_token.expand(len(x), -1, -1), x], dim=1)
        if network.pos_embed is not None:
            x = x + network.pos_embed
        x = network.pos_drop(x)
        shared = None if network.rel_pos_bias is None else network.rel_pos_bias()
        encoded = network.norm(self._through_blocks(x, () if shared is None else (shared,) * self.depth))
        return encoded

    def _through_blocks(self, x: Tensor, positions: Sequence[Tensor] = ()) -> Tensor:
        for index in range(self.depth):
            x = through_block(self.network, index, x, positions)
        return x


def through(
    network: Any, x: Tensor, prefix: int, taps: Sequence[int], positions: Sequence[Tensor] = ()
) -> list[Tensor]:
    """Run tokens through a transformer's blocks. Return the result of `Encoder.encode_visible`, without the prefix.

    Args:
        positions: see `through_block`.
    """
    outputs, last = [], len(network.blocks) - 1
    for index in range(len(network.blocks)):
        x = through_block(network, index, x, positions)
        if index in taps:
            outputs.append((network.norm(x) if index == last else x)[:, prefix:])
    return outputs


def through_block(network: Any, index: int, x: Tensor, positions: Sequence[Tensor] = ()) -> Tensor:
    """Run tokens through one block of a transformer, and keep less for the backward pass if it checkpoints its blocks.

    Args:
        positions: what each block takes beside the tokens, BEiT's relative or rotary positions; none: nothing.
    """
    block, beside = network.blocks[index], positions[index : index + 1]
    encoded: Tensor = checkpoint(block, x, *beside) if network.grad_checkpointing else block(x, *beside)
    return encoded


def transformer_macs(network: Any, patches: int) -> int:
    """Count the multiply-adds of the matrix products of a timm transformer on this many patches."""
    embedding: int = patches * network.patch_embed.proj.weight.numel()
    return embedding + blocks_macs(network.blocks, patches + network.num_prefix_tokens, network.embed_dim)


def blocks_macs(blocks: Any, tokens: int, width: int) -> int:
    """Count the multiply-adds of the matrix products of a timm transformer's blocks on this many tokens."""
    linear: int = sum(m.weight.numel() for m in blocks.modules() if isinstance(m, nn.Linear))
    attention: int = len(blocks) * 2 * tokens**2 * width  # queries by keys, weights by values
    return tokens * linear + attention
