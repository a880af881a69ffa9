"""A plain vision transformer on clips: timm's blocks after an embedding of tubelets, patches of two frames.

It is the plain transformer of the published code of MaskFeat (github.com/facebookresearch/SlowFast, there MViT
without pooling), with the same names and separable positions: by place in a frame, and by frame.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import VisionTransformer, checkpoint
from torch import Tensor, nn
from torch.nn import functional as F

from model.encoders.attention import timm_softmaxes
from model.encoders.encoder import Encoder, Pool, PositionInit, draw, draw_video_biases, fix, gathered, mask_layout
from model.encoders.positions import sincos_frames, sincos_positions
from model.encoders.timm_vit import blocks_macs, build_encoder, through
from model.layout import Layout
from model.size import Sides

TUBELET = 2  # frames per tubelet


class TubeletEmbedding(nn.Module):
    """Embeds tubelets: patches of two frames.

    Args:
        width: width of an embedded tubelet.
        patch: height and width of a patch in pixels.
    """

    def __init__(self, width: int, patch: tuple[int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, width, (TUBELET, *patch), (TUBELET, *patch))

    def forward(self, clips: Tensor) -> Tensor:
        """Embed normalised clips (B, 3, frames, H, W) as (B, tubelets, width), frame by frame, row-major."""
        tokens: Tensor = self.proj(clips).flatten(2).transpose(1, 2)
        return tokens


class TubeletViT(nn.Module):
    """A vision transformer on clips.

    Args:
        vit: a result of `build_encoder`, whose blocks, norms and head are used.
        frames: frames per clip, an even number; 1: the inputs are single frames, which are repeated.

    Raises:
        ValueError: the number of frames is odd, or `vit` is not a plain transformer with one class token.
    """

    def __init__(self, vit: Any, frames: int) -> None:
        super().__init__()
        if not isinstance(vit, VisionTransformer) or vit.num_prefix_tokens != 1 or vit.no_embed_class:
            raise ValueError("a tubelet ViT is a plain transformer with one class token, which also has a position")
        if frames != 1 and frames % TUBELET:
            raise ValueError(f"a clip has an even number of frames, or 1, but not {frames}")
        width, grid = vit.embed_dim, vit.patch_embed.grid_size
        self.frames = frames
        self.num_classes: int = vit.num_classes
        self.grid = (max(frames // TUBELET, 1), *grid)
        self.grad_checkpointing = False
        self.patch_embed = TubeletEmbedding(width, vit.patch_embed.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed_class = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed_spatial = nn.Parameter(torch.zeros(1, grid[0] * grid[1], width))
        self.pos_embed_temporal = nn.Parameter(torch.zeros(1, self.grid[0], width))
        self.pos_drop, self.norm_pre, self.blocks, self.norm = vit.pos_drop, vit.norm_pre, vit.blocks, vit.norm
        self.fc_norm, self.head_drop, self.head = vit.fc_norm, vit.head_drop, vit.head

    def embed(self, clips: Tensor) -> Tensor:
        """Embed normalised clips (B, 3, frames, H, W) as tubelets (B, cells, width), without positions.

        A clip has the frames of the network or a single one, see `tubelets_of`.
        """
        tokens: Tensor = self.patch_embed(tubelets_of(clips))
        return tokens

    def with_positions(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        """Add positions and the class token, which comes first. Return the first block's input, (B, 1 + cells, width).

        Args:
            tokens: (B, cells, width).
            visible: which cells these are, int64 (B, cells); None: all, in order. Those of a single frame are the
                first: it has the positions of a clip's first tubelets.
        """
        width = tokens.shape[-1]
        positions = (self.pos_embed_temporal[0, :, None] + self.pos_embed_spatial).reshape(1, -1, width)
        positions = positions[:, : tokens.shape[1]] if visible is None else positions[0][visible]
        batch = tokens.shape[0]  # not len, which an export would treat as a constant
        first = (self.cls_token + self.pos_embed_class).expand(batch, -1, -1)
        x: Tensor = self.norm_pre(self.pos_drop(torch.cat([first, tokens + positions], dim=1)))
        return x

    def encode(self, tokens: Tensor) -> Tensor:
        """Run the blocks and the final norm on embedded tubelets: (B, 1 + cells, width), class token first."""
        x = self.with_positions(tokens)
        for block in self.blocks:
            x = checkpoint(block, x) if self.grad_checkpointing else block(x)
        encoded: Tensor = self.norm(x)
        return encoded

    def pooled(self, clips: Tensor) -> Tensor:
        """Return the input of the head for normalised clips, (B, width)."""
        feature: Tensor = self.head_drop(self.fc_norm(self.encode(self.embed(clips))[:, 1:].mean(1)))
        return feature

    def forward(self, clips: Tensor) -> Tensor:
        """Compute logits (B, classes) from normalised clips, or features (B, width) without classes."""
        logits: Tensor = self.head(self.pooled(clips))
        return logits


def tubelets_of(clips: Tensor) -> Tensor:
    """Return clips (B, 3, frames, H, W) as they are, and of one frame the same frame twice: one tubelet in time.

    That is how Girdhar et al. show images to a video model, "OmniMAE: Single Model Masked Pretraining on Images and
    Videos", CVPR 2023; their code gives it the positions of the first frame.
    """
    return clips.expand(-1, -1, TUBELET, -1, -1) if clips.shape[2] == 1 else clips


def build_tubelet_vit(name: str, image_size: Sides, frames: int, classes: int = 0, /, **options: Any) -> TubeletViT:
    """Build a tubelet ViT from the blocks of a timm vision transformer.

    Args:
        name, image_size, classes, options: see `build_encoder`.
        frames: see `TubeletViT`.

    Raises:
        ValueError: see `build_encoder` and `TubeletViT`.
    """
    return TubeletViT(build_encoder(name, image_size, classes, **options), frames)


class TubeletEncoder:
    """The `Encoder` of a tubelet ViT: one grid of tokens and predictions, and masks of cells of 32 pixels.

    Args:
        network: a result of `build_tubelet_vit`.
        frames: frames of the inputs, 1 or those of the network; None: those of the network.
    """

    decayed_vectors: tuple[str, ...] = ()
    classifier_parts: tuple[str, ...] = ("fc_norm.", "head.")

    def __init__(self, network: TubeletViT, frames: int | None = None) -> None:
        self.network: Any = network
        frames = frames or network.frames
        _, rows, columns = network.grid
        _, height, width = network.patch_embed.proj.kernel_size
        self.input_shape: tuple[int, ...] = (3, frames, rows * height, columns * width)
        self.token_layout = self.prediction_layout = Layout(max(frames // TUBELET, 1), rows, columns)
        self.single_frames: Encoder | None = TubeletEncoder(network, 1) if frames > 1 else None
        self.prediction_patch = (TUBELET, height, width)
        self.mask_layout = mask_layout(self.prediction_layout, self.input_shape)
        self.embedding_width: int = network.patch_embed.proj.out_channels
        self.width = self.embedding_width
        self.prefix = 1
        self.depth = len(network.blocks)
        self.block_widths, self.key_layouts = (self.width,) * self.depth, (self.token_layout,) * self.depth
        self.classes = network.num_classes

    @property
    def head(self) -> nn.Module:
        """See `Encoder`."""
        head: nn.Module = self.network.head
        return head

    def embed(self, inputs: Tensor) -> Tensor:
        """See `Encoder`; inputs are (B, 3, frames, H, W)."""
        tokens: Tensor = self.network.embed(inputs)
        return tokens

    def encode(self, tokens: Tensor) -> Tensor:
        """See `Encoder`."""
        encoded: Tensor = self.network.encode(tokens)[:, 1:]
        return encoded

    def encode_visible(self, inputs: Tensor, visible: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """See `Encoder`. Pixels are gathered, so that hidden patches are not even embedded."""
        network = self.network
        convolution = network.patch_embed.proj
        x = F.linear(gathered(self._pixels(inputs), visible), convolution.weight.flatten(1), convolution.bias)
        return through(network, network.with_positions(x, visible), self.prefix, taps)

    def pooled(self, inputs: Tensor) -> Tensor:
        """See `Encoder`."""
        feature: Tensor = self.network.pooled(inputs)
        return feature

    def pooled_blocks(self, inputs: Tensor, blocks: Sequence[int], pool: Pool) -> list[Tensor]:
        """See `Encoder`."""
        network, features = self.network, []
        x = network.with_positions(network.embed(inputs))
        for index in range(max(blocks) + 1):
            x = network.blocks[index](x)
            if index in blocks:
                normed = network.norm(x)
                features.append(normed[:, 1:].float().mean(1) if pool == "mean" else normed[:, 0].float())
        return features

    def attention(self, inputs: Tensor) -> list[Tensor]:
        """See `Encoder`."""
        return timm_softmaxes(self.network.blocks, lambda: self.encode(self.embed(inputs)))

    def initialise(self, position_init: PositionInit) -> None:
        """See `Encoder`. Biases start as in the published video code."""
        network = self.network
        positions = (network.pos_embed_class, network.pos_embed_spatial, network.pos_embed_temporal)
        for parameter in (network.cls_token, *positions):
            draw(parameter)
        draw_video_biases(network)
        if not self.classes:  # in the published code this norm belongs to the prediction head
            nn.init.zeros_(network.norm.bias)
        if position_init == "fixed":
            nn.init.zeros_(network.pos_embed_class)
            for parameter in positions:
                fix(parameter)
        if position_init != "random":
            with torch.no_grad():
                network.pos_embed_spatial[0] = sincos_positions(network.grid[1:], self.width)
                network.pos_embed_temporal[0] = sincos_frames(network.grid[0], self.width)

    def checkpoint_blocks(self, enabled: bool) -> None:
        """See `Encoder`."""
        self.network.grad_checkpointing = enabled

    def layer_of(self, name: str) -> int:
        """See `Encoder`."""
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return 0 if name.startswith(("cls_token", "pos_embed", "patch_embed.", "norm_pre.")) else self.depth + 1

    def macs(self, visible: int | None = None) -> int:
        """See `Encoder`."""
        cells = visible or self.token_layout.cells
        embedding: int = cells * self.network.patch_embed.proj.weight.numel()
        return embedding + blocks_macs(self.network.blocks, cells + 1, self.width)

    def _pixels(self, inputs: Tensor) -> Tensor:
        """Cut clips into tubelets: (B, 3, frames, H, W) -> (B, cells, kernel size), in the order of the kernel."""
        inputs = tubelets_of(inputs)
        batch, layout, (frames, height, width) = len(inputs), self.token_layout, self.prediction_patch
        grid = (layout.frames, frames, layout.rows, height, layout.columns, width)
        tubelets = inputs.reshape(batch, -1, *grid).permute(0, 2, 4, 6, 1, 3, 5, 7)
        return tubelets.reshape(batch, layout.cells, -1)
