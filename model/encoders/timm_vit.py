"""timm's plain vision transformers on images: `VisionTransformer`, and `Beit` with its relative positions."""

import difflib
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import timm
import torch
from timm.models import Beit, VisionTransformer, checkpoint, is_model_in_modules
from torch import Tensor, nn

from model.encoders.attention import timm_softmaxes
from model.encoders.encoder import Pool, PositionInit, draw
from model.encoders.positions import sincos_positions
from model.layout import Layout

TimmViT: TypeAlias = VisionTransformer | Beit


def build_encoder(name: str, image_size: int, classes: int = 0, /, **options: Any) -> TimmViT:
    """Build a timm vision transformer whose pooled feature is the mean of its patch tokens.

    Without a head its final LayerNorm sits before the pooling, where MaskFeat trains it, else behind it; the class
    token is kept, as in the published weights, though no loss of MaskFeat's reaches its output.

    Args:
        name: any timm model that is a `VisionTransformer` or, with relative positions, a `Beit`.
        image_size: side in pixels.
        classes: outputs of its head; 0: it has no head.
        options: passed on to timm, e.g. `embed_dim`, `depth`, `num_heads`, `drop_path_rate`.

    Raises:
        ValueError: there is no such model, or it is not a plain vision transformer.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name[:100], timm.list_models(), n=5)
        raise ValueError(f"timm has no model {name[:100]!r}; near it: {', '.join(near) or 'see timm.list_models()'}")
    norm_behind_pooling = "use_fc_norm" if is_model_in_modules(name, ["beit"]) else "fc_norm"
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
    if not (isinstance(encoder, Beit) or (isinstance(encoder, VisionTransformer) and encoder.pos_embed is not None)):
        raise ValueError(f"{name!r} is not a plain vision transformer: choose one like vit_base_patch16_224")
    if 0 in encoder.patch_embed.grid_size:
        raise ValueError(f"a patch of {encoder.patch_embed.patch_size[0]} pixels is larger than an image")
    return encoder


class TimmEncoder:
    """The `Encoder` of a timm vision transformer: one grid, that of its patches.

    Args:
        network: as `build_encoder` or timm itself built it.
    """

    decayed_vectors: tuple[str, ...] = ()
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
        """See `Encoder`. This is timm's `forward_features` from the patch embeddings on."""
        return self._encode(tokens)[:, self.prefix :]

    def pooled(self, inputs: Tensor) -> Tensor:
        """See `Encoder`."""
        feature: Tensor = self.network.forward_head(self.network.forward_features(inputs), pre_logits=True)
        return feature

    def pooled_blocks(self, inputs: Tensor, blocks: Sequence[int], pool: Pool) -> list[Tensor]:
        """See `Encoder`."""
        tokens = self.network.forward_intermediates(
            inputs,
            indices=list(blocks),
            return_prefix_tokens=True,
            norm=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        return [patches.float().mean(1) if pool == "mean" else prefix[:, 0].float() for patches, prefix in tokens]

    def attention(self, inputs: Tensor) -> list[Tensor]:
        """See `Encoder`."""
        return timm_softmaxes(self.network.blocks, lambda: self.encode(self.embed(inputs)))

    def initialise(self, position_init: PositionInit) -> None:
        """See `Encoder`."""
        network = self.network
        for parameter in (network.cls_token, getattr(network, "reg_token", None), network.pos_embed):
            draw(parameter)
        if position_init == "sincos":
            if network.pos_embed is None:
                raise ValueError("position_init=sincos needs an encoder with absolute positions: set it to random")
            table = sincos_positions(network.patch_embed.grid_size, network.embed_dim)
            with torch.no_grad():
                network.pos_embed[0, -len(table) :] = table

    def checkpoint_blocks(self, enabled: bool) -> None:
        """See `Encoder`."""
        self.network.set_grad_checkpointing(enabled)

    def layer_of(self, name: str) -> int:
        """See `Encoder`."""
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return self.depth + 1 if name.startswith(("norm.", "fc_norm.", "head.")) else 0

    def macs(self) -> int:
        """See `Encoder`."""
        return transformer_macs(self.network, self.token_layout.cells)

    def _encode(self, x: Tensor) -> Tensor:
        """(B, patches, width) -> (B, prefix + patches, width)."""
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
        encoded = network.norm(self._through_blocks(x, shared_rel_pos_bias=shared))
        return encoded

    def _through_blocks(self, x: Tensor, **biases: Tensor | None) -> Tensor:
        again = self.network.grad_checkpointing
        for block in self.network.blocks:
            x = checkpoint(block, x, **biases) if again else block(x, **biases)
        return x


def transformer_macs(network: Any, patches: int) -> int:
    """Count the multiply-adds of the matrix products of a timm transformer that looks at this many patches."""
    embedding: int = patches * network.patch_embed.proj.weight.numel()
    return embedding + blocks_macs(network.blocks, patches + network.num_prefix_tokens, network.embed_dim)


def blocks_macs(blocks: Any, tokens: int, width: int) -> int:
    """Count the multiply-adds of the matrix products of a timm transformer's blocks for this many tokens."""
    linear: int = sum(m.weight.numel() for m in blocks.modules() if isinstance(m, nn.Linear))
    attention: int = len(blocks) * 2 * tokens**2 * width  # queries by keys, weights by values
    return tokens * linear + attention
