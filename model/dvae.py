"""The encoder of DALL-E's discrete VAE, which maps each 8x8-pixel square to one of 8,192 tokens.

Architecture: Ramesh et al., "Zero-Shot Text-to-Image Generation", ICML 2021, and its published code
(github.com/openai/DALL-E). FLAVA's image codebook is the same network under other names.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from model.weights_file import WeightsError, load, weights_file

STRIDE = 8  # pixels along a side of a token's square
_GROUPS = 4


class _Block(nn.Module):
    def __init__(self, width_in: int, width: int, gain: float) -> None:
        super().__init__()
        hidden = width // 4
        self.gain = gain
        self.id_path = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()
        self.res_path = nn.Sequential(
            OrderedDict(
                relu_1=nn.ReLU(),
                conv_1=nn.Conv2d(width_in, hidden, 3, padding=1),
                relu_2=nn.ReLU(),
                conv_2=nn.Conv2d(hidden, hidden, 3, padding=1),
                relu_3=nn.ReLU(),
                conv_3=nn.Conv2d(hidden, hidden, 3, padding=1),
                relu_4=nn.ReLU(),
                conv_4=nn.Conv2d(hidden, width, 1),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.id_path(x) + self.gain * self.res_path(x)
        return out


class DvaeEncoder(nn.Module):
    """Computes the logits of an image's tokens.

    Args:
        width: channels of the first group; 256 in DALL-E.
        blocks: blocks per group; 2 in DALL-E.
        tokens: size of the vocabulary; 8,192 in DALL-E.
    """

    def __init__(self, width: int = 256, blocks: int = 2, tokens: int = 8192) -> None:
        super().__init__()
        self.tokens = tokens
        gain = 1 / (_GROUPS * blocks) ** 2
        layers: OrderedDict[str, nn.Module] = OrderedDict(input=nn.Conv2d(3, width, 7, padding=3))
        before = width
        for group in range(_GROUPS):
            wide, parts = width * 2**group, OrderedDict[str, nn.Module]()
            for block in range(blocks):
                parts[f"block_{block + 1}"] = _Block(before, wide, gain)
                before = wide
            if group < _GROUPS - 1:
                parts["pool"] = nn.MaxPool2d(2)
            layers[f"group_{group + 1}"] = nn.Sequential(parts)
        layers["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=nn.Conv2d(before, tokens, 1)))
        self.blocks = nn.Sequential(layers)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of every token.

        Args:
            images: floats (B, 3, H, W) in [0, 1], in the dtype of the first layers; H and W multiples of 8.

        Returns:
            float32 (B, tokens, H / 8, W / 8).
        """
        x = 0.8 * images + 0.1  # keeps values away from 0 and 1, whose logits are infinite
        *groups, output = self.blocks
        for layer in groups:
            x = layer(x)
        logits: Tensor = output(x.float())
        return logits

    def compute_in(self, dtype: torch.dtype) -> None:
        """Compute in `dtype`, except the last layer in float32, as the published code does."""
        self.to(dtype)
        cast(nn.Module, self.blocks.output).float()

    def macs(self, rows: int, columns: int) -> int:
        """Count the multiply-adds of an image of rows x columns tokens."""
        total, stride = 0, STRIDE
        for layer in self.modules():  # in the order of the forward pass
            if isinstance(layer, nn.Conv2d):
                total += rows * columns * stride**2 * layer.weight.numel()
            elif isinstance(layer, nn.MaxPool2d):
                stride //= 2
        return total


def dvae_file(path: Path) -> Path:
    """Find the weights in a folder of the Hugging Face layout; return a file unchanged."""
    older = path / "pytorch_model.bin"
    return older if path.is_dir() and older.is_file() else weights_file(path)


def load_dvae(file: Path) -> DvaeEncoder:
    """Load an encoder from a state dict of plain tensors, with the names of DALL-E's code or of FLAVA's.

    Args:
        file: a file of safetensors or `torch.save`: DALL-E's encoder, FLAVA's image codebook, or all of FLAVA.

    Raises:
        WeightsError: the file is missing or damaged, contains more than tensors, or is of another network.
    """
    found = load(file)
    if not isinstance(found, Mapping):
        raise WeightsError(f"{file} contains no state dict of a dVAE encoder")
    tensors = {_our_name(key): value for key, value in found.items() if isinstance(value, Tensor)}
    tensors = {key: value for key, value in tensors.items() if key.startswith("blocks.")}
    try:
        width, tokens = len(tensors["blocks.input.weight"]), len(tensors["blocks.output.conv.weight"])
        numbers = [int(key[1]) for name in tensors if (key := re.match(r"blocks\.group_1\.block_(\d+)\.", name))]
        with torch.device("meta"):
            network = DvaeEncoder(width, max(numbers), tokens)
        network.load_state_dict({key: value.float() for key, value in tensors.items()}, assign=True)
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{file} is not the encoder of DALL-E's dVAE, nor FLAVA's image codebook ({reason})"
        ) from None
    return network.eval().requires_grad_(False)


def _our_name(key: str) -> str:
    """Translate a name of either code: DALL-E calls weights `w` and biases `b`, FLAVA nests groups and paths deeper."""
    name = re.sub(r"^(.*\.)?image_codebook\.", "", str(key))
    name = name.replace(".group.", ".").replace(".res_path.path.", ".res_path.")
    return re.sub(r"\.(w|b)$", lambda found: ".weight" if found[1] == "w" else ".bias", name)
