"""The adapter of timm's `Eva`: vision transformers with rotary positions, such as DINOv3's and EVA-02's."""

from collections.abc import Sequence

from torch import Tensor

from model.encoders.timm_vit import TimmEncoder, through


class EvaEncoder(TimmEncoder):
    """The `Encoder` of an `Eva`: like that of a plain vision transformer, with blocks that rotate queries and keys.

    Rotary positions (Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021) are of patches
    only: class and register tokens have none. They are a table that is computed when the network is built, and no
    weight. In half precision DeepSpeed rounds it as it does the weights.
    """

    def encode_visible(self, inputs: Tensor, visible: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """See `Encoder`. Patches keep the rotary positions of their places."""
        ropes = []
        for rope in self._ropes():
            kept = rope[..., visible, :]  # (B * r, kept, n) or, with positions of each head, (heads, B * r, kept, n)
            ropes.append(kept[:, None] if kept.ndim == 3 else kept.transpose(0, 1))
        return through(self.network, self._embed_visible(inputs, visible), self.prefix, taps, ropes)

    def _encode(self, x: Tensor) -> Tensor:
        network = self.network
        x = network.norm_pre(network._pos_embed(x)[0])
        encoded: Tensor = network.norm(self._through_blocks(x, self._ropes()))
        return encoded

    def _ropes(self) -> Sequence[Tensor]:
        """Return the rotary positions of each block, (cells, n) or (heads, cells, n); or none."""
        network = self.network
        if network.rope is None:
            return ()
        rope: Tensor = network.rope.get_embed()
        return rope.unbind() if network.rope_mixed else (rope,) * self.depth
